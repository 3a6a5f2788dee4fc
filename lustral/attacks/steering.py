"""Objectives that add to a loss of the logits a term of the purifier's trace."""

import math
from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor

from lustral.attacks.objectives import Objective, margin, mean_over_draws

_NOTHING: Mapping[str, Tensor] = {}


class SteeredObjective(Objective):
    """``objective`` + ``weight`` * the mean over draws of a term of the purifier's trace.

    The term only steers the search: a high value does not harm the defence, so iterates are ranked without it.

    Args:
        objective: the loss of the logits.
        weight: of the term, finite and not 0; a negative weight makes the attack lower the term.
    """

    def __init__(self, objective: Objective, weight: float) -> None:
        if not math.isfinite(weight) or weight == 0:
            raise ValueError(f"The weight of {type(self).__name__} is {weight}; it must be finite and not 0.")
        self.objective, self.weight = objective, weight
        self.separable, self.target = objective.separable, objective.target
        self.needs = tuple(dict.fromkeys((*objective.needs, *self.needs)))
        self.expects = objective.expects

    @property
    def plain(self) -> Objective:
        return self.objective.plain

    @abstractmethod
    def term(self, trace: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """(N, B): the term of each draw; ``y`` (B,) are the true labels."""

    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        steering = self.weight * mean_over_draws(self.term(trace, y))
        return self.objective(logits, y, trace, given) + steering.to(logits.dtype)

    def wrongness(self, logits: Tensor, y: Tensor) -> Tensor:
        return self.objective.wrongness(logits, y)


class WithScore(SteeredObjective):
    """``objective`` + ``weight`` * log(perturbation score): against `SSNI`, whose noise levels depend on the score.

    A positive weight drives the level up, so that purification removes the image's content; a negative one drives it
    down, so that the perturbation survives. Which of the two harms a defence is an empirical question.

    The score has a gradient only if levels are not rounded, or rounded straight through: use such a `Variant` as the
    surrogate. Otherwise the score is a constant, and the attack is refused.

    Args:
        objective: the loss of the logits.
        weight: of the logarithm of the score, finite and not 0.
    """

    needs = ("score",)

    def term(self, trace: Mapping[str, Tensor], y: Tensor) -> Tensor:
        return trace["score"].log()


class Deviation(SteeredObjective):
    """``objective`` + ``weight`` * deviation: a positive weight drives the reverse process away from the forward one.

    The deviation is the squared distance, averaged over pixels and reverse steps, between the state after a step and
    the image noised to the same level with the noise of the forward process (see `RoundPurifier.walk`). The idea is
    that of DiffAttack's deviated-reconstruction loss (Kang et al. 2023), which weights the steps; here all steps have
    the same weight, and the gradient is that of the whole process instead of a sum over segments.

    Args:
        objective: the loss of the logits.
        weight: of the deviation, finite and not 0. The deviation is in squared units of diffusion space, [-1, 1].
    """

    needs = ("deviation",)

    def term(self, trace: Mapping[str, Tensor], y: Tensor) -> Tensor:
        return trace["deviation"]


class MoveReference(SteeredObjective):
    """``objective`` + ``weight`` * margin of y_ref: against `DistributionTransfer`, whose reverse process is led by
    y_ref, the victim's answer at another image. A positive weight makes y_ref wrong too.

    Where y_ref is the answer at a rounded image (JPEG, bit depth), it has no gradient, and the attack is refused: use a
    `Variant` of the transformation's rounding as the surrogate.

    Args:
        objective: the loss of the logits.
        weight: of y_ref's margin (largest wrong logit - true logit), finite and not 0.
    """

    needs = ("reference_logits",)

    def term(self, trace: Mapping[str, Tensor], y: Tensor) -> Tensor:
        return margin(trace["reference_logits"], y)
