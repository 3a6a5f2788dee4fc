"""The engine and what it ascends: chunks of R rows, EOT, gradients of any objective."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lustral.attacks import (
    CrossEntropy,
    Engine,
    Margin,
    MeanLogitMargin,
    Objective,
)
from lustral.diffusion import EulerMaruyama, VPSchedule
from lustral.evaluation import Defence
from lustral.purifiers import DiffPure, GradientMode, Identity
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
}
DEFENCES: dict[str, Callable[[], Defence]] = {
    "undefended": lambda: Defence(ToyClassifier(), Identity()),
    "noisy": lambda: Defence(ToyClassifier(), NoisyPurifier(0.2)),
    "diffpure": lambda: Defence(
        ToyClassifier(), DiffPure(SmoothDenoiser(VPSchedule()).float(), EulerMaruyama(), 100, 2)
    ),
}
ROWS = 8


# Objectives ------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_are_row_wise_bit_for_bit(name: str) -> None:
    """The score of an image decides which iterate is kept, so not a bit of it may depend on the batch."""
    objective = OBJECTIVES[name]
    logits = 5 * torch.randn(16, 33, 10, generator=generator())
    y = torch.randint(0, 10, (33,), generator=generator(1))
    together = objective(logits, y, {})
    assert together.shape == (33,)
    for size in (1, 3, 7):
        for first in range(0, 33, size):
            rows = torch.arange(first, min(first + size, 33))
            assert torch.equal(objective(logits[:, rows], y[rows], {}), together[rows])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_are_their_formulas(name: str) -> None:
    logits = torch.randn(5, 7, 4, generator=generator(), dtype=torch.float64)
    y = torch.randint(0, 4, (7,), generator=generator(1))
    for b in range(7):
        z, true = logits[:, b], int(y[b])
        others = [k for k in range(4) if k != true]
        expected = {
            "cross_entropy": (z.exp().sum(-1).log() - z[:, true]).mean(),
            "margin": (z[:, others].amax(-1) - z[:, true]).mean(),
            "mean_logit_margin": z.mean(0)[others].amax() - z.mean(0)[true],
        }[name]
        assert float(OBJECTIVES[name](logits, y, {})[b]) == pytest.approx(float(expected))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_separable_means_the_mean_over_draws(name: str) -> None:
    objective = OBJECTIVES[name]
    logits, y = (
        3 * torch.randn(5, 30, 4, generator=generator(), dtype=torch.float64),
        cases(30, classes=4).labels,
    )
    single = torch.stack([objective(draw[None], y, {}) for draw in logits]).mean(0)
    assert torch.allclose(objective(logits, y, {}), single) == objective.separable


# The engine ------------------------------------------------------------


@pytest.mark.parametrize(("batch", "draws"), [(1, 1), (3, 1), (8, 1), (9, 1), (3, 5), (9, 3)])
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
        return objective(defence(x.repeat(4, 1, 1, 1), noise.repeat(4)).logits.view(4, 5, -1), y, {})

    answer = Engine(defence, rows).answer(x, y, noise, objective, draws=4)
    leaf = x.clone().requires_grad_()
    loss = folded(leaf)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    torch.testing.assert_close(answer.loss, loss.detach())
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
    answer = engine.answer(images(3), cases(3).labels, stream(3), CrossEntropy(), 2, mode)
    assert (answer.gradient == 0).all() == (mode == "detached")
    assert (answer.zero_rows == (1 if mode == "detached" else 0)).all()


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="rows is 0"):
        Engine(DEFENCES["undefended"](), 0)
