"""Each sample once in a test; a training order that depends on seed and epoch only."""

import pytest

from datamodules.samplers import DisjointSampler, EpochSampler


@pytest.mark.parametrize("length", [0, 1, 2, 7, 12])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_disjoint_shares_cover_each_sample_once(length: int, world_size: int) -> None:
    samplers = [DisjointSampler(length, rank, world_size) for rank in range(world_size)]
    shares = [list(sampler) for sampler in samplers]
    assert sorted(sample for share in shares for sample in share) == list(range(length))
    assert [len(sampler) for sampler in samplers] == [len(share) for share in shares]


def test_a_process_may_find_nothing_to_do() -> None:
    assert list(DisjointSampler(2, rank=2, world_size=3)) == []


def test_an_unknown_process_is_refused() -> None:
    with pytest.raises(ValueError, match="rank"):
        DisjointSampler(5, rank=2, world_size=2)


def test_training_order_depends_on_seed_and_epoch() -> None:
    first, again, other = EpochSampler(50, seed=0), EpochSampler(50, seed=0), EpochSampler(50, seed=7)
    assert list(first) == list(again) != list(other)
    before = list(first)
    first.set_epoch(3)
    after = list(first)
    assert {epoch for epoch, _ in after} == {3}
    assert [sample for _, sample in after] != [sample for _, sample in before]
    assert sorted(sample for _, sample in after) == list(range(50))


def test_training_shares_are_equally_long_and_cover_all() -> None:
    shares = [list(EpochSampler(7, seed=0, rank=rank, world_size=3)) for rank in range(3)]
    assert {len(share) for share in shares} == {3}
    assert {sample for share in shares for _, sample in share} == set(range(7))
