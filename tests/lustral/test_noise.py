"""Keyed noise: the generator's known answers, its statistics, and that a row's draws are the row's alone."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from lustral.noise import NoiseStream, philox4x32
from tests.contracts import stream

# Random123's kat_vectors: counter, key, answer.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter: tuple, key: tuple, answer: tuple) -> None:
    words = philox4x32(tuple(torch.tensor(word) for word in counter), key)  # type: ignore[arg-type]
    assert tuple(int(word) for word in words) == answer


def test_normal_draws_are_normal() -> None:
    draws = stream(2000).normal((101,), dtype=torch.float64).flatten().numpy()
    n = len(draws)
    assert abs(draws.mean()) < 4 / math.sqrt(n)
    assert abs(draws.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs(stats.skew(draws)) < 4 * math.sqrt(6 / n)
    assert abs(stats.kurtosis(draws)) < 4 * math.sqrt(24 / n)
    assert stats.kstest(draws, "norm").pvalue > 1e-3


def test_uniform_draws_are_uniform() -> None:
    draws = stream(2000).uniform((101,), dtype=torch.float64).flatten().numpy()
    assert 0 < draws.min() < 1e-4 < 1 - 1e-4 < draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > 1e-3


def test_neighbouring_pixels_and_rows_are_uncorrelated() -> None:
    draws = NoiseStream(0, torch.arange(1000)).normal((64,), dtype=torch.float64)
    for one, other in ((draws[:, :-1], draws[:, 1:]), (draws[:-1], draws[1:]), (draws[:, :-2], draws[:, 2:])):
        assert abs(np.corrcoef(one.flatten(), other.flatten())[0, 1]) < 4 / math.sqrt(one.numel())


def _with(**columns: int) -> NoiseStream:
    index = torch.arange(40)
    return NoiseStream(0, index, **{name: torch.full_like(index, value) for name, value in columns.items()})


SHAPE = (500,)
BASE = NoiseStream(0, torch.arange(40))
# Every part of the key, changed by the least there is (and, where parts share a word, across their seam).
CHANGED: dict[str, Callable[[], torch.Tensor]] = {
    "seed": lambda: NoiseStream(1, torch.arange(40)).normal(SHAPE),
    "index": lambda: NoiseStream(0, torch.arange(40) + 40).normal(SHAPE),
    "iteration": lambda: _with(iteration=1).normal(SHAPE),
    "restart": lambda: _with(restart=1).normal(SHAPE),
    "draw": lambda: _with(draw=1).normal(SHAPE),
    "large draw": lambda: _with(draw=2**8).normal(SHAPE),
    "largest draw": lambda: _with(draw=2**16 - 1).normal(SHAPE),
    "path": lambda: BASE.fork("verdict").normal(SHAPE),
    "longer path": lambda: BASE.fork("verdict", "clean").normal(SHAPE),
    "joined path": lambda: BASE.fork("verdictclean").normal(SHAPE),
    "round": lambda: BASE.normal(SHAPE, round=1),
    "step": lambda: BASE.normal(SHAPE, step=1),
    "round and step": lambda: BASE.normal(SHAPE, round=1, step=1),
}


def test_every_part_of_the_key_makes_other_independent_noise() -> None:
    drawn = {"base": BASE.normal(SHAPE)} | {name: draw() for name, draw in CHANGED.items()}
    flat = torch.stack([values.flatten() for values in drawn.values()])
    correlation = torch.corrcoef(flat) - torch.eye(len(flat))
    assert correlation.abs().max() < 5 / math.sqrt(flat.shape[1]), drawn.keys()
    for i in range(len(flat)):
        for j in range(i):
            assert (flat[i] == flat[j]).float().mean() < 1e-3


def test_a_million_keys_never_collide() -> None:
    """10^6 blocks over all columns and several hashed keys; a chance match of 64 bits has odds of 3e-8."""
    size = 10
    grid = torch.cartesian_prod(*(torch.arange(size),) * 4)
    blocks = []
    for name in map(str, range(10)):
        for step in range(10):
            noise = NoiseStream(0, *grid.T, path=(name,))
            words = noise._words((4,), 0, step)[:, 0]
            blocks.append((words[:, 0] << 32) ^ words[:, 1])
    keys = torch.cat(blocks)
    assert len(keys) == 10**6
    assert len(keys.unique()) == len(keys)


def test_a_row_is_the_same_in_any_batch() -> None:
    whole = stream(33).repeat(2).at(iteration=3)
    expected = whole.normal((3, 5, 5))
    order = torch.randperm(66, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole.select(order).normal((3, 5, 5)), expected[order])
    mask = torch.arange(66) % 3 == 0
    assert torch.equal(whole.select(mask).normal((3, 5, 5)), expected[mask])
    for i in range(66):
        assert torch.equal(whole.select(torch.tensor([i])).normal((3, 5, 5)), expected[i : i + 1])


def test_repeat_is_draw_major_and_its_first_draw_is_the_stream_itself() -> None:
    noise = stream(5)
    repeated = noise.repeat(3).normal((4,)).view(3, 5, 4)
    assert torch.equal(repeated[0], noise.normal((4,)))
    for d in range(3):
        single = NoiseStream(noise.seed, noise.index, draw=torch.full((5,), d))
        assert torch.equal(repeated[d], single.normal((4,)))


def test_repeating_twice_gives_distinct_draws() -> None:
    values = stream(2).repeat(3).repeat(4).uniform((1,), dtype=torch.float64)
    assert len(values.unique()) == 24


def test_larger_images_of_a_row_begin_with_the_smaller_ones_draws() -> None:
    """Draws of another shape are not other noise: who needs two independent ones must fork."""
    assert torch.equal(stream(3).uniform((10,))[:, :7], stream(3).uniform((7,)))


@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_float32_is_float64_rounded(draw: str) -> None:
    noise = stream(20)
    single, double = getattr(noise, draw)((3, 7)), getattr(noise, draw)((3, 7), dtype=torch.float64)
    assert single.dtype == torch.float32
    assert double.dtype == torch.float64
    assert torch.equal(single, double.float())
    assert not torch.equal(single.double(), double)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    state = torch.get_rng_state()
    first = stream(4).normal((3, 3))
    torch.rand(7)
    second = stream(4).normal((3, 3))
    torch.set_rng_state(state)
    stream(4).fork("a").repeat(2).uniform((3,))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
