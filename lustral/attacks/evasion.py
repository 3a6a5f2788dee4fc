"""Objectives against a defence whose detector chooses what happens to an image: `lustral.purifiers.DAD`."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lustral.attacks.objectives import Objective, mean_over_draws
from lustral.attacks.steering import SteeredObjective

_NOTHING: Mapping[str, Tensor] = {}
_DETECTED = 1e4
"""What a detected iterate loses in rank, for each threshold that its statistic amounts to: more than any loss."""


class WithStatistic(SteeredObjective):
    """``objective`` + ``weight`` * the detector's statistic. With a weight of 100 and the cross-entropy, it is what
    DAD's authors raise (MMD + 0.01 CE): it makes the detector fire, which is no evasion. A negative weight lowers the
    statistic.

    In a group the statistic stands on every row, and losses are summed over rows: with m images the sum is that of
    ``objective`` + m * weight * statistic.

    Args:
        objective: the loss of the logits.
        weight: of the statistic, finite and not 0.
    """

    needs = ("statistic",)

    def term(self, trace: Mapping[str, Tensor], y: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return trace["statistic"]


class Evade(SteeredObjective):
    """``objective`` - ``weight`` * max(0, D / tau - (1 - margin)): wrong answers below the detector's threshold tau.

    The objective follows the branch of undetected images, so the attack differentiates that branch (a `Variant` with
    ``route: raw``) and the statistic D.

    Args:
        objective: the loss of the logits.
        weight: of the share by which the statistic exceeds its target, positive.
        margin: how far below the threshold the target is, as a share of it, in [0, 1).
    """

    needs = ("alarm",)

    def __init__(self, objective: Objective, weight: float = 10.0, margin: float = 0.1) -> None:
        _check_margin(margin)
        if not 0 < weight < math.inf:
            raise ValueError(f"weight is {weight}; it must be positive and finite.")
        super().__init__(objective, weight)
        self.margin = margin

    def term(self, trace: Mapping[str, Tensor], y: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return -(trace["alarm"] - (1.0 - self.margin)).clamp_min(0.0)

    def ranked(self, plain: Tensor, trace: Mapping[str, Tensor]) -> Tensor:
        return undetected_first(plain, trace)


class SelectiveEvasion(Objective):
    """``objective`` while D / tau is at most 1 - margin, and -D / tau beyond: selective gradient descent (Bryniarski et
    al. 2022), which needs no weight. In a group all rows switch together.

    Args:
        objective: the loss of the logits.
        margin: how far below the threshold the attack turns round, as a share of it, in [0, 1).
    """

    needs = ("alarm",)

    def __init__(self, objective: Objective, margin: float = 0.1) -> None:
        _check_margin(margin)
        self.objective, self.margin = objective, margin
        self.separable, self.target, self.expects = objective.separable, objective.target, objective.expects
        self.needs = tuple(dict.fromkeys((*objective.needs, *self.needs)))

    @property
    def plain(self) -> Objective:
        return self.objective.plain

    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        alarm = mean_over_draws(trace["alarm"])
        loss = self.objective(logits, y, trace, given)
        return torch.where(alarm.detach() <= 1.0 - self.margin, loss, -alarm.to(loss.dtype))

    def ranked(self, plain: Tensor, trace: Mapping[str, Tensor]) -> Tensor:
        return undetected_first(plain, trace)

    def wrongness(self, logits: Tensor, y: Tensor) -> Tensor:
        return self.objective.wrongness(logits, y)


def undetected_first(plain: Tensor, trace: Mapping[str, Tensor]) -> Tensor:
    """(B,): ``plain`` losses (B,) of iterates that are not detected, and far less the more an iterate is: its loss is
    that of the branch without the denoiser, which it does not take. (Iterates of large loss are mostly detected ones,
    so without this they crowd out those that evade.)"""
    alarm = mean_over_draws(trace["alarm"])
    return torch.where(alarm <= 1.0, plain, (plain - _DETECTED * alarm).to(plain.dtype))


def _check_margin(margin: float) -> None:
    if not 0 <= margin < 1:
        raise ValueError(f"margin is {margin}; it must be in [0, 1).")
