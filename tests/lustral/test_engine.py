"""The engine and what it ascends: chunks of R rows, EOT, gradients of any objective."""

import math
from collections.abc import Callable, Collection
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lustral.attacks import (
    CrossEntropy,
    Deviation,
    DifferenceOfLogitsRatio,
    Engine,
    Margin,
    MeanLogitCrossEntropy,
    MeanLogitMargin,
    Objective,
    SelectiveMargin,
    WithScore,
)
from lustral.diffusion import EulerMaruyama, VPSchedule
from lustral.evaluation import Defence
from lustral.noise import NoiseStream
from lustral.purifiers import Context, DiffPure, GradientMode, Identity, Purified
from tests.contracts import (
    NoisyPurifier,
    Recording,
    SmoothDenoiser,
    ToyClassifier,
    cases,
    central_differences,
    generator,
    images,
    relative_error,
    stream,
)

OBJECTIVES: dict[str, Objective] = {
    "cross_entropy": CrossEntropy(),
    "margin": Margin(),
    "mean_logit_margin": MeanLogitMargin(),
    "mean_logit_cross_entropy": MeanLogitCrossEntropy(),
    "difference_of_logits_ratio": DifferenceOfLogitsRatio(),
    "selective_margin": SelectiveMargin(0.5),
    "lower_score": WithScore(CrossEntropy(), -0.7),
    "mean_logit_higher_score": WithScore(MeanLogitMargin(), 0.3),
    "deviation": Deviation(Margin(), 2.0),
    "all_at_once": Deviation(WithScore(SelectiveMargin(2.0), -0.5), 0.5),
}


class Tracing(NoisyPurifier):
    """Has all that an objective may need in its trace, of an image and a draw."""

    offers: ClassVar = {"score": "(B,)", "deviation": "(B,)"}

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        images = super().run(x, context, noise, wants).images
        score = 1 + (images[0].double() ** 2).flatten(1).sum(1)
        return Purified(images, {"score": score, "deviation": torch.sin(3 * images[0].double()).flatten(1).sum(1)})


def _trace(objective: Objective, draws: int, batch: int) -> dict[str, Tensor]:
    values = 0.5 + torch.rand(draws, batch, generator=generator(2), dtype=torch.float64)
    return {name: values * (k + 1) for k, name in enumerate(objective.needs)}


DEFENCES: dict[str, Callable[[], Defence]] = {
    "undefended": lambda: Defence(ToyClassifier(), Identity()),
    "noisy": lambda: Defence(ToyClassifier(), Tracing(0.2)),
    "diffpure": lambda: Defence(
        ToyClassifier(), DiffPure(SmoothDenoiser(VPSchedule()).float(), EulerMaruyama(), 100, 2)
    ),
}
ROWS = 32  # small matrix products of fewer rows, and tensors with a tail, differ by slot on some processors


# Objectives ------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_are_row_wise_bit_for_bit(name: str) -> None:
    """The score of an image decides which iterate is kept, so not a bit of it may depend on the batch."""
    objective = OBJECTIVES[name]
    logits = 5 * torch.randn(16, 33, 10, generator=generator())
    y = torch.randint(0, 10, (33,), generator=generator(1))
    trace = _trace(objective, 16, 33)
    together = objective(logits, y, trace)
    assert together.shape == (33,)
    assert together.dtype == logits.dtype
    for size in (1, 3, 7):
        for first in range(0, 33, size):
            rows = torch.arange(first, min(first + size, 33))
            part = {name: values[:, rows] for name, values in trace.items()}
            assert torch.equal(objective(logits[:, rows], y[rows], part), together[rows])


def _formulas(z: Tensor, true: int, trace: list[Tensor]) -> dict[str, float]:
    """Every objective for one image, from its logits (N, K) and what it needs of the trace, (N,) each."""
    others = [k for k in range(z.shape[1]) if k != true]
    ce, m = z.exp().sum(-1).log() - z[:, true], z[:, others].amax(-1) - z[:, true]
    mean_logit = z.mean(0)[others].amax() - z.mean(0)[true]
    ordered = [sorted(row, reverse=True) for row in z.tolist()]
    ratios = [float(m[n]) / (row[0] - row[2]) for n, row in enumerate(ordered)]
    first, second = (*trace, *[torch.ones(len(z), dtype=z.dtype)] * 2)[:2]

    def selective(temperature: float) -> float:
        g = [math.exp(u) if u < 0 else 1 + u for u in (m / temperature).tolist()]
        return temperature * math.log(sum(g) / len(g))

    return {
        "cross_entropy": float(ce.mean()),
        "margin": float(m.mean()),
        "mean_logit_margin": float(mean_logit),
        "mean_logit_cross_entropy": -math.log(float(z.mean(0).softmax(0)[true])),
        "difference_of_logits_ratio": sum(ratios) / len(ratios),
        "selective_margin": selective(0.5),
        "lower_score": float((ce - 0.7 * first.log()).mean()),
        "mean_logit_higher_score": float(mean_logit + 0.3 * first.log().mean()),
        "deviation": float((m + 2.0 * first).mean()),
        "all_at_once": selective(2.0) + float((0.5 * second - 0.5 * first.log()).mean()),
    }


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_are_their_formulas(name: str) -> None:
    logits = torch.randn(5, 7, 4, generator=generator(), dtype=torch.float64)
    y = torch.randint(0, 4, (7,), generator=generator(1))
    trace = _trace(OBJECTIVES[name], 5, 7)
    found = OBJECTIVES[name](logits, y, trace)
    for b in range(7):
        expected = _formulas(logits[:, b], int(y[b]), [values[:, b] for values in trace.values()])
        assert float(found[b]) == pytest.approx(expected[name])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_separable_means_the_mean_over_draws(name: str) -> None:
    objective, trace = OBJECTIVES[name], _trace(OBJECTIVES[name], 5, 30)
    logits, y = (
        3 * torch.randn(5, 30, 4, generator=generator(), dtype=torch.float64),
        cases(30, classes=4).labels,
    )
    draws = [{name: values[n, None] for name, values in trace.items()} for n in range(5)]
    single = torch.stack([objective(draw[None], y, part) for draw, part in zip(logits, draws, strict=True)]).mean(0)
    assert torch.allclose(objective(logits, y, trace), single) == objective.separable


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_steers_takes_no_part_in_ranking(name: str) -> None:
    """The plain objective needs no trace, aims at the same rule, and is not moved by the term that was added."""
    objective = OBJECTIVES[name]
    logits, y = 3 * torch.randn(5, 30, 4, generator=generator()), cases(30, classes=4).labels
    assert objective.plain.needs == ()
    assert (objective.plain is objective) == (not objective.needs)
    assert objective.target == objective.plain.target
    assert torch.equal(objective.wrongness(logits, y), objective.plain.wrongness(logits, y))
    whole = objective(logits, y, _trace(objective, 5, 30))
    assert torch.equal(whole, objective.plain(logits, y, {})) == (not objective.needs)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 1e6])
def test_selective_weights_follow_the_draws_that_can_be_broken(temperature: float) -> None:
    """The gradient is that of the margins with softmax weights of min(margin, 0): those of broken draws are equal."""
    m = torch.tensor([4.0, 0.5, -0.2, -1.0, -6.0], dtype=torch.float64).requires_grad_()
    logits = torch.stack((torch.zeros_like(m), m), dim=1)[:, None, :]
    loss = SelectiveMargin(temperature)(logits, torch.tensor([0]), {})
    (found,) = torch.autograd.grad(loss.sum(), m)
    expected = torch.softmax(m.detach().clamp_max(0) / temperature, 0)
    torch.testing.assert_close(found / found.sum(), expected)
    if temperature == 1e6:
        torch.testing.assert_close(loss.detach()[0], m.detach().mean(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SelectiveMargin(0.0), "temperature is 0.0"),
        (lambda: SelectiveMargin(float("nan")), "temperature is nan"),
        (lambda: WithScore(Margin(), 0.0), "weight of WithScore is 0.0"),
        (lambda: Deviation(Margin(), float("inf")), "weight of Deviation is inf"),
    ],
)
def test_impossible_objectives_are_refused(build: Callable[[], Objective], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# The engine ------------------------------------------------------------


@pytest.mark.parametrize(("batch", "draws"), [(1, 1), (3, 1), (32, 1), (33, 1), (3, 15), (33, 3)])
def test_every_network_call_has_exactly_r_rows(batch: int, draws: int) -> None:
    recording = Recording(DEFENCES["noisy"]())
    engine, x, y = Engine(recording, ROWS), images(batch), cases(batch).labels
    engine.logits(x, stream(batch), draws)
    engine.answer(x, y, stream(batch), CrossEntropy(), draws)
    expected = -(-batch * draws // ROWS)
    assert [rows for rows, _ in recording.calls] == [ROWS] * (2 * expected)


def test_eot_is_the_mean_of_single_draws() -> None:
    defence, x, y, noise = DEFENCES["noisy"](), images(5), cases(5).labels, stream(5)
    answer = Engine(defence, ROWS).answer(x, y, noise, CrossEntropy(), draws=6)
    losses, gradients, logits = [], [], []
    for draw in range(6):
        leaf = x.clone().requires_grad_()
        single = defence(leaf, noise.repeat(6).select(torch.arange(5) + 5 * draw)).logits
        loss = F.cross_entropy(single, y, reduction="none")
        gradients.append(torch.autograd.grad(loss.sum(), leaf)[0])
        losses.append(loss.detach())
        logits.append(single.detach())
    torch.testing.assert_close(answer.logits, torch.stack(logits))
    torch.testing.assert_close(answer.loss, torch.stack(losses).mean(0))
    torch.testing.assert_close(answer.gradient, torch.stack(gradients).mean(0), rtol=1e-4, atol=1e-7)
    assert not torch.allclose(answer.logits[0], answer.logits[1])
    assert (answer.zero_rows == 0).all()


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("rows", [3, 8, 64])
def test_the_gradient_is_the_whole_expressions(name: str, rows: int) -> None:
    """Also where the objective is no mean over draws, and wherever chunks end."""
    objective, defence = OBJECTIVES[name], DEFENCES["noisy"]().double()
    x, y, noise = images(5, dtype=torch.float64), cases(5).labels, stream(5)

    def folded(x: Tensor) -> Tensor:
        judged = defence(x.repeat(4, 1, 1, 1), noise.repeat(4), wants=objective.needs)
        trace = {name: judged.trace[name].view(4, 5) for name in objective.needs}
        return objective(judged.logits.view(4, 5, -1), y, trace)

    answer = Engine(defence, rows).answer(x, y, noise, objective, draws=4)
    leaf = x.clone().requires_grad_()
    loss = folded(leaf)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    torch.testing.assert_close(answer.loss, loss.detach())
    torch.testing.assert_close(answer.rank, objective.plain(answer.logits, y, {}))
    torch.testing.assert_close(answer.gradient, gradient)
    assert relative_error(answer.gradient, central_differences(folded, x)) < 1e-6


@pytest.mark.parametrize("name", OBJECTIVES)
def test_answers_do_not_depend_on_the_batch(name: str) -> None:
    engine, x, y, noise = Engine(DEFENCES["noisy"](), ROWS), images(13), cases(13).labels, stream(13)
    together = engine.answer(x, y, noise, OBJECTIVES[name], draws=16)
    for rows in (torch.arange(5), torch.tensor([12, 3, 7]), torch.tensor([4])):
        part = engine.answer(x[rows], y[rows], noise.select(rows), OBJECTIVES[name], draws=16)
        assert torch.equal(part.gradient, together.gradient[rows])
        assert torch.equal(part.logits, together.logits[:, rows])
        assert torch.equal(part.loss, together.loss[rows])


def test_a_deterministic_defence_is_asked_once() -> None:
    recording = Recording(DEFENCES["undefended"]())
    logits = Engine(recording, ROWS).logits(images(3), stream(3), draws=10)
    assert logits.shape == (10, 3, 3)
    assert len(recording.calls) == 1


@pytest.mark.parametrize("defence", ["undefended", "noisy", "diffpure"])
@pytest.mark.parametrize("mode", ["exact", "bpda", "detached"])
def test_every_gradient_mode_is_answered(defence: str, mode: GradientMode) -> None:
    engine = Engine(DEFENCES[defence](), ROWS)
    labels = engine.logits(images(3), stream(3))[0].argmax(-1)
    answer = engine.answer(images(3), labels, stream(3), CrossEntropy(), 2, mode)
    assert (answer.gradient == 0).all() == (mode == "detached")
    assert torch.equal(answer.right_rows, (answer.logits.argmax(-1) == labels).float().sum(0))
    assert (answer.right_rows > 0).any()
    assert torch.equal(answer.zero_rows, answer.right_rows * (mode == "detached"))


def test_a_loss_that_rests_once_a_draw_is_wrong_hides_no_gradient() -> None:
    """DLR is constant where the true class is the third of three: that gradient of zero is not counted."""
    engine = Engine(DEFENCES["undefended"](), ROWS)
    logits = engine.logits(images(6), stream(6))[0]
    for place, label in enumerate((logits.argmax(-1), logits.argmin(-1))):
        answer = engine.answer(images(6), label, stream(6), DifferenceOfLogitsRatio())
        assert (answer.gradient.flatten(1).abs().amax(1) < 1e-6).all() == (place == 1)
        assert (answer.zero_rows == 0).all()


@pytest.mark.parametrize("name", ["lower_score", "deviation"])
def test_an_objective_that_would_be_blind_is_refused_at_the_first_query(name: str) -> None:
    x, y = images(3), cases(3).labels
    with pytest.raises(ValueError, match=r"The trace of Identity has no (score|deviation); it offers nothing"):
        Engine(DEFENCES["undefended"](), ROWS).answer(x, y, stream(3), OBJECTIVES[name])

    class Detached(Tracing):
        def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
            purified = super().run(x, context, noise, wants)
            return Purified(purified.images, {key: values.detach() for key, values in purified.trace.items()})

    with pytest.raises(ValueError, match=r"follows the (score|deviation), but this purifier takes it as a constant"):
        Engine(Defence(ToyClassifier(), Detached()), ROWS).answer(x, y, stream(3), OBJECTIVES[name])


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="rows is 0"):
        Engine(DEFENCES["undefended"](), 0)
