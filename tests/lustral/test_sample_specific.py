"""Noise levels by sample: scores and rules in closed form, one clock for all rows, and what an attack sees of it."""

import itertools
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lustral.attacks import CrossEntropy, Engine
from lustral.diffusion import DDIM, EulerMaruyama, LinearSchedule, NoiseSchedule, VPSchedule, to_diffusion
from lustral.diffusion.perturbation import EPS, SingleScore
from lustral.evaluation import Defence
from lustral.noise import NoiseStream
from lustral.purifiers import (
    GDMP,
    GNSP,
    SSNI,
    Context,
    DiffPure,
    FixedLevels,
    LevelRule,
    LinearLevels,
    MeanLevels,
    MSEGuidance,
    Purified,
    Purifier,
    RoundPurifier,
    ShuffledLevels,
    SigmoidLevels,
    StoredScores,
    Variant,
)
from lustral.purifiers.slots import clock, own_grid
from lustral.rows import Runtime
from tests.closed_form import FULL, MEAN, GaussianDenoiser
from tests.contracts import (
    SmoothDenoiser,
    ToyClassifier,
    central_differences,
    images,
    relative_error,
    stored_scores,
    stream,
)

SHAPE = (1, 4, 4)


class GivenLevels(LevelRule):
    """Levels as a test wants them, by the row's index."""

    looks = False

    def __init__(self, levels: dict[int, float]) -> None:
        self.levels = levels

    def __call__(self, score: Tensor, t_star: float, reference: Tensor, noise) -> Tensor:
        share = torch.tensor([self.levels[int(i)] for i in noise.index], dtype=torch.float64)
        return share * t_star


def _ssni(purifier: RoundPurifier, rule: LevelRule, rounding: Any = True) -> SSNI:
    score = EPS(3, 10.0)
    return SSNI(purifier, rule, stored_scores(purifier.denoiser, score, [280.0, 310.0, 400.0]), score, rounding)


def _diffpure(steps: int = 100, denoiser: SmoothDenoiser | None = None) -> DiffPure:
    return DiffPure(denoiser or SmoothDenoiser(VPSchedule(), SHAPE).float(), EulerMaruyama(), 100, steps)


def _gdmp() -> GDMP:
    return GDMP(SmoothDenoiser(LinearSchedule(), SHAPE).float(), MSEGuidance("noised", 1), 60, 6, 2, 20.0, "24/255")


BASES: dict[str, Callable[[], RoundPurifier]] = {
    "diffpure": lambda: _diffpure(10),
    "gnsp": lambda: GNSP(SmoothDenoiser(LinearSchedule(), SHAPE).float(), [(60, 6), (120, 3)]),
    "gdmp": _gdmp,
    "own_grid": lambda: GNSP(SmoothDenoiser(LinearSchedule(), SHAPE).float(), [(60, 6), (120, 3)], layout="own"),
}


# Scores -----------------------------------------------------------------------------------


def test_the_perturbation_score_of_gaussian_data() -> None:
    """The mean over t of -(x_t - a m) (a^2 C + s^2)^-1, in numpy, from the stream's own noise."""
    schedule, count = VPSchedule(), 5
    denoiser, x, noise = GaussianDenoiser(schedule), images(4, (1, 2, 2), dtype=torch.float64), stream(4)
    purifier = DiffPure(denoiser, EulerMaruyama(), 100, 5)
    statistic = EPS(count, 20.0)
    ssni = _bare(purifier, statistic)
    found = ssni.score(x, noise).detach()
    total = np.zeros((4, 4))
    for k in range(1, count + 1):
        t = torch.tensor(20.0 * k, dtype=torch.float64)
        a, s = float(schedule.alpha(t)), float(schedule.sigma(t))
        z = noise.fork("score").normal((4,), step=k - 1, dtype=torch.float64).numpy()
        x_t = a * (2 * x.flatten(1).numpy() - 1) + s * z
        total -= (x_t - a * MEAN) @ np.linalg.inv(a**2 * FULL + s**2 * np.eye(4)) / count
    np.testing.assert_allclose(found.numpy(), np.linalg.norm(total, axis=1), rtol=1e-9)


def test_the_single_score_is_that_of_the_image_itself() -> None:
    denoiser, x = GaussianDenoiser(VPSchedule()), images(3, (1, 2, 2), dtype=torch.float64)
    ssni = _bare(DiffPure(denoiser, EulerMaruyama(), 100, 5), SingleScore(30.0))
    expected = denoiser.score(to_diffusion(x), torch.tensor(30.0, dtype=torch.float64)).flatten(1).norm(dim=1)
    torch.testing.assert_close(ssni.score(x, stream(3)), expected)


def test_another_model_may_score() -> None:
    """The same network in continuous time, say; the stored scores are then its own, and the purifier's walk is not."""
    table, statistic, x = SmoothDenoiser(LinearSchedule(), SHAPE).float(), EPS(3, 10.0), images(4, SHAPE)
    continuous = SmoothDenoiser(VPSchedule(), SHAPE).float()
    purifier = DiffPure(table, DDIM(1.0), 100, 10)
    reference, rule = stored_scores(continuous, statistic, [280.0, 310.0, 400.0]), SigmoidLevels(5.0, 40.0)
    ssni = SSNI(purifier, rule, reference, statistic, scorer=continuous)
    assert not any(parameter.requires_grad for parameter in ssni.parameters())
    other = _ssni(_diffpure(10, continuous), rule)
    levels = ssni.prepare(x, stream(4))["levels"]
    assert torch.equal(levels, other.prepare(x, stream(4))["levels"])
    walked = purifier.walk(x, levels, stream(4), ()).images
    torch.testing.assert_close(ssni(x, stream(4)).images, walked)
    assert not torch.allclose(other(x, stream(4)).images, walked, atol=1e-2)
    with pytest.raises(ValueError, match="are of another denoiser"):
        SSNI(purifier, rule, reference, statistic)


def _bare(purifier: RoundPurifier, statistic: EPS | SingleScore) -> SSNI:
    # A test double of networks has arrays among its arguments: its description is of no interest here.
    purifier.denoiser.mean_, purifier.denoiser.covariance = MEAN.tolist(), FULL.tolist()  # type: ignore[assignment]
    reference = object.__new__(StoredScores)
    reference.scores, reference.check = torch.tensor([1.0, 2.0]).double(), lambda *_: None  # type: ignore[method-assign]
    return SSNI(purifier, FixedLevels(), reference, statistic)


# Rules ------------------------------------------------------------------------------------

SCORES = torch.tensor([2.0, 10.0, 14.0, 30.0], dtype=torch.float64)
REFERENCE = torch.tensor([4.0, 12.0, 20.0], dtype=torch.float64)


def test_ssni_l_clips_the_ratio_to_the_reference() -> None:
    levels = LinearLevels(5.0)(SCORES, 100.0, REFERENCE, stream(4))
    assert levels.tolist() == [5.0, 42.5, 67.5, 105.0]


def test_ssni_n_gives_a_typical_image_half_of_t_star() -> None:
    rule = SigmoidLevels(5.0, 4.0)
    levels = rule(torch.tensor([12.0, 1e6, -1e6]).double(), 100.0, REFERENCE, stream(3))
    assert levels.tolist() == [52.5, 105.0, 0.0]
    found = rule(SCORES, 100.0, REFERENCE, stream(4)).numpy()
    np.testing.assert_allclose(found, 105 / (1 + np.exp(-(SCORES.numpy() - 12) / 4)))


def test_the_released_code_takes_one_step_off_t_star() -> None:
    """Round((99 + 5) sigmoid) for t* = 100; the options say so or nothing."""
    far = torch.tensor([-1e4, 12.0, 1e4], dtype=torch.float64)
    found = SigmoidLevels(5.0, 8.0, "reference")(far, 100.0, REFERENCE, stream(3))
    assert found.tolist() == [0.0, 52.0, 104.0]
    assert LinearLevels(5.0, "reference")(SCORES, 100.0, REFERENCE, stream(4)).tolist() == [5.0, 42.125, 66.875, 104.0]
    assert MeanLevels(LinearLevels(5.0, "reference"))(SCORES, 100.0, REFERENCE, stream(4))[0] == 54.5
    for rule in (SigmoidLevels, LinearLevels):
        with pytest.raises(ValueError, match="level_offset is 'code'; it may be formula, reference"):
            rule(level_offset="code")  # type: ignore[arg-type]


def test_controls_look_at_no_image() -> None:
    rule = SigmoidLevels(5.0, 4.0)
    own = rule(REFERENCE, 100.0, REFERENCE, stream(3))
    assert FixedLevels(0.5)(SCORES, 80.0, REFERENCE, stream(4)).tolist() == [40.0] * 4
    torch.testing.assert_close(MeanLevels(rule)(SCORES, 100.0, REFERENCE, stream(4)), own.mean().expand(4))
    many = torch.zeros(3000, dtype=torch.float64)
    drawn = ShuffledLevels(rule)(many, 100.0, REFERENCE, stream(3000))
    values, counts = drawn.unique(return_counts=True)
    assert torch.equal(values, own.sort().values)
    assert (counts - 1000).abs().max() < 4 * (3000 * 2 / 9) ** 0.5
    for rule_ in (FixedLevels(), MeanLevels(rule), ShuffledLevels(rule)):
        assert not rule_.looks


def test_a_rule_that_does_not_look_asks_for_no_score() -> None:
    calls: list[int] = []
    purifier = _diffpure(10)
    purifier.denoiser.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    _ssni(purifier, FixedLevels(0.5))(images(3, SHAPE), stream(3))
    assert calls == [3] * 5
    calls.clear()
    _ssni(purifier, SigmoidLevels(0.0, 1e9))(images(3, SHAPE), stream(3))
    assert calls == [3] * (3 + 5)


# One clock for all rows -------------------------------------------------------------------


@pytest.mark.parametrize("name", BASES)
def test_the_full_level_for_all_is_the_purifier_itself(name: str) -> None:
    base = BASES[name]()
    x = images(5, SHAPE)
    assert torch.equal(_ssni(base, FixedLevels(1.0))(x, stream(5)).images, base(x, stream(5)).images)


def test_level_zero_leaves_an_image_alone() -> None:
    base, x = _diffpure(10), images(3, SHAPE)
    rule = GivenLevels(dict(zip(stream(3).index.tolist(), [0.0, 0.4, 0.0], strict=True)))
    found = _ssni(base, rule)(x, stream(3)).images[0]
    torch.testing.assert_close(found[[0, 2]], x[[0, 2]], rtol=0, atol=1e-7)
    assert not torch.allclose(found[1], x[1], atol=1e-3)


@pytest.mark.parametrize("name", BASES)
def test_mixed_levels_are_those_of_one_image_at_a_time(name: str) -> None:
    x, noise = images(7, SHAPE), stream(7)
    shares = [0.0, 0.31, 1.0, 0.77, 0.5, 1.04, 0.09]
    ssni = _ssni(BASES[name](), GivenLevels(dict(zip(noise.index.tolist(), shares, strict=True))))
    together = ssni(x, noise).images[0]
    for b in range(7):
        row = torch.tensor([b])
        torch.testing.assert_close(ssni(x[row], noise.select(row)).images[0], together[row], rtol=1e-5, atol=1e-6)


def test_the_cost_is_the_sum_of_the_levels() -> None:
    """Levels of 0 to 105 of whole steps, rows counted where the network is called: the sum over the images, and the
    padding of at most one call a step."""
    rows = 8
    purifier, calls = _diffpure(100), []
    purifier.denoiser.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    count = 16 * rows
    noise = stream(count)
    levels = (torch.arange(count) * 37 % 106).tolist()
    rule = GivenLevels({int(i): level / 100 for i, level in zip(noise.index, levels, strict=True)})
    engine = Engine(Defence(ToyClassifier(shape=SHAPE), _ssni(purifier, rule)), rows)
    engine.logits(images(count, SHAPE), noise)
    assert set(calls) == {rows}
    assert sum(levels) <= sum(calls) <= 1.02 * sum(levels) + (rows - 1) * max(levels)
    assert sum(calls) < 0.65 * count * max(levels)


@pytest.mark.parametrize(
    ("t", "expected"),
    [
        (100, [19, 39, 59, 79, 99]),
        (10, [1, 3, 5, 7, 9]),
        (3, [0, 1, 2]),  # the authors' 0, 1, 1, 2, 2 without the steps that lead nowhere
        (1, [0]),
        (0, []),
    ],
)
def test_own_grids_are_the_published_ones(t: int, expected: list[int]) -> None:
    levels = torch.tensor([float(t)], dtype=torch.float64)
    starts = [float(slot.times(levels)[0]) - 1 for slot in own_grid(LinearSchedule(), 5, levels)]
    assert starts == [float(i) for i in reversed(expected)]


@pytest.mark.parametrize("schedule", [VPSchedule(), LinearSchedule()], ids=type)
def test_rows_join_the_clock_at_their_level_and_walk_to_its_end(schedule: NoiseSchedule) -> None:
    grid, levels = schedule.grid(100, 5), torch.tensor([100.0, 47.0, 0.0, 112.0, 20.0], dtype=torch.float64)
    walks: list[list[tuple[float, float]]] = [[] for _ in levels]
    keys = []
    for slot in clock(grid, levels):
        rows = torch.arange(5) if slot.rows is None else slot.rows
        t, s = slot.times(levels[rows])
        keys.append(slot.key)
        for row, a, b in zip(rows.tolist(), t.tolist(), s.expand_as(t).tolist(), strict=True):
            walks[row].append((a, b))
    end = float(grid[-1])
    assert walks[0] == [(100, 80), (80, 60), (60, 40), (40, 20), (20, end)]
    assert walks[1] == [(47, 40), (40, 20), (20, end)]
    assert walks[2] == []
    assert walks[3] == [(112, 100), *walks[0]]
    assert walks[4] == [(20, end)]
    assert keys == [-1, 0, 1, 2, 3, 4]


def test_pieces_have_one_shape_and_give_the_same_rows() -> None:
    seen = []

    def double(x: Tensor, shift: Tensor, rows: Tensor) -> Tensor:
        seen.append(len(x))
        return 2 * x + shift + rows[:, None]

    x, shift, rows = torch.arange(14.0).view(7, 2), torch.tensor(0.5), torch.arange(7)
    assert torch.equal(Runtime(3).call(double, x, shift, rows), 2 * x + 0.5 + rows[:, None])
    assert seen == [3, 3, 3]
    assert torch.equal(Runtime().call(double, x, shift, rows), 2 * x + 0.5 + rows[:, None])


# What an attack sees ----------------------------------------------------------------------


def _gradient(ssni: SSNI, x: Tensor, context: Context | None = None) -> Tensor:
    leaf = x.clone().requires_grad_()
    out = ssni(leaf, stream(len(x)), context=context).images[0]
    weights = torch.linspace(-1, 2, out[0].numel(), dtype=out.dtype).view(out.shape[1:])
    return torch.autograd.grad((weights * torch.sin(2 * out)).sum(), leaf)[0]


def _double(rounding: Any) -> SSNI:
    return _ssni(_diffpure(10, SmoothDenoiser(VPSchedule(), SHAPE)), SigmoidLevels(5.0, 40.0), rounding)


def _smooth(ssni: SSNI) -> Purifier:
    return Variant({"rounding": False}).of(ssni)


def test_the_smooth_gradient_is_that_of_the_unrounded_defence() -> None:
    x = images(2, SHAPE, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        out = _smooth(_double(True))(x, stream(2)).images[0]
        weights = torch.linspace(-1, 2, out[0].numel(), dtype=out.dtype).view(out.shape[1:])
        return (weights * torch.sin(2 * out)).flatten(1).sum(1)

    assert relative_error(_gradient(_smooth(_double(True)), x), central_differences(loss, x)) < 1e-6
    torch.testing.assert_close(_gradient(_smooth(_double(True)), x), _gradient(_double(False), x))


def test_rounded_levels_are_constants_of_the_exact_gradient_alone() -> None:
    """With the levels fixed at their rounded values the gradient is the same; straight through it is another."""
    ssni, x = _double(True), images(2, SHAPE, dtype=torch.float64)
    levels = ssni(x, stream(2), wants=["levels"]).trace["levels"][:, 0]
    fixed = _ssni(ssni.purifier, GivenLevels(dict(zip(stream(2).index.tolist(), (levels / 100).tolist(), strict=True))))
    exact = _gradient(ssni, x)
    torch.testing.assert_close(exact, _gradient(fixed, x))
    variant = Variant({"rounding": "straight_through"}).of(ssni)
    assert torch.equal(variant(x, stream(2)).images, ssni(x, stream(2)).images)
    through = _gradient(variant, x)
    assert relative_error(through, exact) > 0.01


def test_frozen_levels_are_the_clean_images() -> None:
    ssni, clean = _double(True), images(2, SHAPE, dtype=torch.float64)
    attacked = images(2, SHAPE, seed=7, dtype=torch.float64)
    wants = ["levels"]
    of = {name: ssni(x, stream(2), wants=wants).trace["levels"] for name, x in (("clean", clean), ("it", attacked))}
    assert not torch.equal(of["clean"], of["it"])
    held = ssni.prepare(clean, stream(2))
    assert torch.equal(ssni(attacked, stream(2), context=held, wants=wants).trace["levels"], of["clean"])
    assert torch.equal(
        ssni(attacked, stream(2), context={"levels": held["levels"]}, wants=wants).trace["levels"], of["clean"]
    )


def test_an_attack_freezes_the_clean_images_levels_through_the_engine() -> None:
    ssni = _double(True)
    defence = Defence(ToyClassifier(shape=SHAPE).double(), ssni)
    clean, attacked = images(3, SHAPE, dtype=torch.float64), images(3, SHAPE, seed=7, dtype=torch.float64)
    y = torch.zeros(3, dtype=torch.int64)
    seen = []
    hook = ssni.purifier.walk

    def spy(x: Tensor, levels: Tensor | None, noise: NoiseStream, wants: Collection[str]) -> Purified:
        assert levels is not None
        seen.append(levels)
        return hook(x, levels, noise, wants)

    ssni.purifier.walk = spy  # type: ignore[method-assign]
    Engine(defence, 4).answer(attacked, y, stream(3), CrossEntropy(), 1, clean=clean)
    assert torch.equal(seen[0][:3], ssni.prepare(clean, stream(3).repeat(1))["levels"])


def test_every_draw_scores_the_image_afresh() -> None:
    ssni, x = _double(False), images(1, SHAPE, dtype=torch.float64)
    scores = ssni(x.expand(6, -1, -1, -1), stream(1).repeat(6), wants=["score"]).trace["score"]
    assert len(scores.unique()) == 6


def test_between_the_levels_of_a_table_there_is_no_gradient() -> None:
    ssni = _ssni(BASES["gnsp"](), SigmoidLevels())
    with pytest.raises(ValueError, match="between the levels of a table there is nothing to differentiate"):
        Variant({"rounding": "straight_through"}).of(ssni)


# The stored reference ---------------------------------------------------------------------


def test_scores_of_another_denoiser_or_statistic_are_refused() -> None:
    purifier, other = _diffpure(10), SmoothDenoiser(VPSchedule(), SHAPE).float()
    with torch.no_grad():
        other.first.bias.add_(1)
    score = EPS(3, 10.0)
    with pytest.raises(ValueError, match="are of another denoiser: make them again"):
        SSNI(purifier, SigmoidLevels(), stored_scores(other, score, [1.0, 2.0]), score)
    with pytest.raises(ValueError, match="are of another statistic: make them again"):
        SSNI(purifier, SigmoidLevels(), stored_scores(purifier.denoiser, score, [1.0, 2.0]), EPS(4, 10.0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "holds no reference scores"),
        ("{}", "holds no reference scores"),
        ("[1]", "holds no reference scores"),
        ('{"schema": 1, "scores": [[1], [1, 2]], "made_by": {}}', "holds no reference scores"),
        ('{"schema": 1, "scores": [1, 2], "made_by": [1]}', "holds no reference scores"),
        ('{"schema": 2, "scores": [1, 2], "made_by": {"denoiser": 1, "statistic": 1}}', "has schema 2"),
        (None, "There are no reference scores"),
    ],
)
def test_a_damaged_reference_is_told_in_a_sentence(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        StoredScores(str(path))


@pytest.mark.parametrize("scores", [[1.0], [1.0, float("nan")]])
def test_too_few_or_bad_scores_are_refused(scores: list[float], tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    path.write_text(json.dumps({"schema": 1, "made_by": {"denoiser": 1, "statistic": 1}, "scores": scores}))
    with pytest.raises(ValueError, match="at least two finite scores"):
        StoredScores(str(path))


def test_the_content_of_a_reference_decides_and_not_its_place(tmp_path: Path) -> None:
    from lustral.describe import describe

    denoiser, score = SmoothDenoiser(VPSchedule(), SHAPE), EPS(3)
    one, same, other = (stored_scores(denoiser, score, s) for s in ([1.0, 2.0], [1.0, 2.0], [1.0, 3.0]))
    assert one.file != same.file
    assert describe(one) == describe(same) != describe(other)


def test_gnsp_is_ddim_with_eta_round_by_round() -> None:
    """Two rounds by hand, from the stream's own noise."""
    denoiser, x, noise = SmoothDenoiser(LinearSchedule(), SHAPE), images(2, SHAPE, dtype=torch.float64), stream(2)
    purifier = GNSP(denoiser, [(30, 1), (50, 2)], eta=1.0)
    state = to_diffusion(x)
    for number, times in enumerate(([30.0, 0.0], [50.0, 25.0, 0.0])):
        z = noise.fork("forward").normal(SHAPE, round=number, dtype=torch.float64)
        state = denoiser.schedule.perturb(state, torch.tensor(times[0]), z)
        for i, (t, s) in enumerate(itertools.pairwise(times)):
            z = noise.fork("reverse").normal(SHAPE, round=number, step=i, dtype=torch.float64)
            state = DDIM(1.0).step(denoiser, state, torch.tensor(t), torch.tensor(s), z)
    torch.testing.assert_close(purifier(x, noise).images[0], (state + 1) / 2)
