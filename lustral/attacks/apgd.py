"""Auto-PGD (Croce and Hein 2020, arXiv 2003.01690, algorithm 1): PGD with an adaptive step size."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lustral.attacks.engine import Answer, Engine
from lustral.attacks.first_order import FirstOrderAttack, Held, State, likeliest_wrong_classes
from lustral.attacks.objectives import TARGET, Objective, TargetedDifferenceOfLogitsRatio
from lustral.attacks.victim import Cases
from lustral.noise import NoiseStream
from lustral.purifiers import GradientMode, Purifier, Variant
from lustral.threat import ThreatModel

MOMENTUM = 0.75
"""Alpha, the weight of the new step in the momentum update; 1 - alpha is the weight of the previous move."""
RISING = 0.75
"""Rho, the share of the steps since the last checkpoint that must have raised the loss; below it the step is halved."""


class APGD(FirstOrderAttack):
    """x_{k+1} = project(x_k + alpha (z - x_k) + (1 - alpha) (x_k - x_{k-1})) with z = project(x_k + step * ascent).

    The step size begins at 2 eps, and alpha is 0.75. At each of the `checkpoints` w_j, image by image, the step size is
    halved and the search goes on from the best iterate so far, if (1) less than 0.75 of the steps since w_{j-1} raised
    the loss, or (2) the step size was not halved at w_{j-1} and the best loss has not changed since. As in the authors'
    code, this is tested as soon as the loss of x_{w_j} is known; the listing in the paper takes one more step first.

    **Random defences.** Each iterate's loss is computed on fresh draws, which no other iterate has seen. So condition
    (1) compares two noisy losses, and the "best" iterate may owe its place to lucky draws: where a step gains less than
    the standard error of the mean over draws, half of the steps seem to raise the loss, condition (1) holds at nearly
    every checkpoint, and the step size shrinks towards zero. A larger ``eot`` makes both comparisons more reliable.
    They only steer the search: as in every attack, the returned iterate is chosen on selection draws.

    Args:
        num_steps: gradient steps per restart.
        random_start: begin at a uniform sample from the ball instead of the image.
        restarts: independent runs.
        eot: draws of the defence's noise that a loss and its gradient are averaged over.
        objective: the loss to be raised; CrossEntropy if none is named. AutoAttack also takes DifferenceOfLogitsRatio.
        gradient: "exact", "bpda" or "detached".
        selection: "best" or "last" iterate (see `FirstOrderAttack`).
        finalists: iterates per image that are scored again on selection draws.
        selection_draws: draws of the defence's noise on which finalists are scored.
        surrogate: what is differentiated in place of the defence's purifier, a `Variant` of it or another purifier;
            None differentiates the defence (see `GradientAttack`).
        context: "own", or "clean" to hand the purifier the context of the clean image (see `GradientAttack`).
        carry: entries of the context that are carried from step to step (see `GradientAttack`).
        spread: further finalists per restart, evenly spaced over its steps, where the attack differentiates something
            other than the defence itself.
    """

    def __init__(
        self,
        num_steps: int = 100,
        random_start: bool = True,
        restarts: int = 1,
        eot: int = 1,
        objective: Objective | None = None,
        gradient: GradientMode = "exact",
        selection: Literal["best", "last"] = "best",
        finalists: int = 3,
        selection_draws: int = 16,
        surrogate: None | Variant | Purifier = None,
        context: Held = "own",
        carry: Sequence[str] = (),
        spread: int = 2,
    ) -> None:
        super().__init__(
            num_steps,
            restarts,
            eot,
            objective,
            gradient,
            selection,
            finalists,
            selection_draws,
            surrogate,
            context,
            carry,
            spread,
        )
        if restarts > 1 and not random_start:
            raise ValueError(f"attack.restarts is {restarts} without a random start: all would start at the image.")
        self.random_start = random_start

    def start(self, x: Tensor, y: Tensor, threat: ThreatModel, noise: NoiseStream) -> State:
        return _start(threat.random_point(x, noise) if self.random_start else x, x, y, threat)

    def update(self, state: State, answer: Answer) -> State:
        return _update(state, answer, checkpoints(self.num_steps))


class APGDTargeted(FirstOrderAttack):
    """APGD on the targeted DLR loss, one run for each of an image's most likely wrong classes.

    The targets are the ``num_targets`` wrong classes with the largest logits of the clean image under the defence,
    averaged over ``eot`` draws. An image that is broken by one target is not attacked with the next, if the defence is
    deterministic and is itself what is differentiated.

    Args:
        num_steps: gradient steps per target.
        num_targets: targets per image, at most the number of classes minus one.
        random_start: begin at a uniform sample from the ball instead of the image.
        eot: draws of the defence's noise that a loss and its gradient are averaged over.
        gradient: "exact", "bpda" or "detached".
        finalists: iterates per image that are scored again on selection draws, besides the last one of every target.
        selection_draws: draws of the defence's noise on which finalists are scored.
        surrogate: what is differentiated in place of the defence's purifier, a `Variant` of it or another purifier;
            None differentiates the defence (see `GradientAttack`).
        context: "own", or "clean" to hand the purifier the context of the clean image (see `GradientAttack`).
        carry: entries of the context that are carried from step to step (see `GradientAttack`).
        spread: further finalists per target, evenly spaced over its steps, where the attack differentiates something
            other than the defence itself.
    """

    gives = (TARGET,)

    def __init__(
        self,
        num_steps: int = 100,
        num_targets: int = 9,
        random_start: bool = True,
        eot: int = 1,
        gradient: GradientMode = "exact",
        finalists: int = 3,
        selection_draws: int = 16,
        surrogate: None | Variant | Purifier = None,
        context: Held = "own",
        carry: Sequence[str] = (),
        spread: int = 2,
    ) -> None:
        if num_targets < 1:
            raise ValueError(f"num_targets is {num_targets}; it must be at least 1.")
        objective = TargetedDifferenceOfLogitsRatio()
        super().__init__(
            num_steps,
            num_targets,
            eot,
            objective,
            gradient,
            "best",
            finalists,
            selection_draws,
            surrogate,
            context,
            carry,
            spread,
        )
        self.num_targets, self.random_start = num_targets, random_start

    def targets(self, engine: Engine, cases: Cases, noise: NoiseStream) -> Tensor:
        return likeliest_wrong_classes(engine, cases, noise, self.eot, self.num_targets)

    def start(self, x: Tensor, y: Tensor, threat: ThreatModel, noise: NoiseStream) -> State:
        return _start(threat.random_point(x, noise) if self.random_start else x, x, y, threat)

    def update(self, state: State, answer: Answer) -> State:
        return _update(state, answer, checkpoints(self.num_steps))


def checkpoints(num_steps: int) -> list[int]:
    """The iterations w_j at which a step size may be halved: ceil(p_j num_steps) with p_0 = 0, p_1 = 0.22 and
    p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)."""
    shares = [0, 22]  # integer hundredths: in floating point, 0.22 + 0.19 may exceed 0.41, and the ceiling would jump
    while shares[-1] <= 100:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 3, 6))
    return sorted({-(-share * num_steps // 100) for share in shares if share <= 100})


def _start(query: Tensor, x: Tensor, y: Tensor, threat: ThreatModel) -> State:
    """The state before the first query. No step size is halved at w_0 = 0, where no loss is known yet."""
    zero, lowest = torch.zeros_like(y), x.new_full((len(x),), -torch.inf)
    memory = {
        "iteration": zero,
        "checked": zero,  # the last checkpoint
        "rises": zero,  # steps since then that raised the loss
        "halved": torch.zeros_like(y, dtype=torch.bool),  # at the last checkpoint
        "step": torch.full_like(lowest, 2 * threat.budget),
        "loss": -lowest,
        "best_loss": lowest,
        "best_loss_checked": lowest,  # at the last checkpoint
        "best": query,
        "best_gradient": torch.zeros_like(x),
        "previous": query,
    }
    return State(query, x, y, threat, memory)


def _update(state: State, answer: Answer, looks: list[int]) -> State:
    """One step; rows at a checkpoint (an iteration in ``looks``) first have their step size tested."""
    m, loss, threat = state.memory, answer.loss, state.threat
    rises = m["rises"] + (loss > m["loss"])
    better = loss > m["best_loss"]
    best_loss = torch.where(better, loss, m["best_loss"])
    best, best_gradient = (
        _where(better, new, m[name]) for name, new in (("best", state.query), ("best_gradient", answer.gradient))
    )

    looked_at = torch.isin(m["iteration"], torch.tensor(looks, device=loss.device))
    too_few = rises < RISING * (m["iteration"] - m["checked"])
    stuck = ~m["halved"] & (best_loss == m["best_loss_checked"])
    halved = looked_at & (too_few | stuck)
    step = torch.where(halved, 0.5 * m["step"], m["step"])
    x, gradient = _where(halved, best, state.query), _where(halved, best_gradient, answer.gradient)

    z = threat.project(x + step[:, None, None, None] * threat.ascent_direction(gradient), state.x)
    moved = threat.project(x + MOMENTUM * (z - x) + (1 - MOMENTUM) * (x - m["previous"]), state.x)
    memory = {
        "iteration": m["iteration"] + 1,
        "checked": torch.where(looked_at, m["iteration"], m["checked"]),
        "rises": rises.masked_fill(looked_at, 0),
        "halved": torch.where(looked_at, halved, m["halved"]),
        "step": step,
        "loss": loss,
        "best_loss": best_loss,
        "best_loss_checked": torch.where(looked_at, best_loss, m["best_loss_checked"]),
        "best": best,
        "best_gradient": best_gradient,
        "previous": x,
    }
    return replace(state, query=_where(m["iteration"] == 0, z, moved), memory=memory)


def _where(rows: Tensor, those: Tensor, others: Tensor) -> Tensor:
    """Images of ``those`` where ``rows`` (B,), of ``others`` elsewhere."""
    return torch.where(rows[:, None, None, None], those, others)
