"""Objectives that add to a loss of the logits a term of the purifier's trace."""

import math
from abc import abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from lustral.attacks.objectives import PERTURBATION, Objective, margin, mean_over_draws

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
        self.expects = tuple(dict.fromkeys((*objective.expects, *self.expects)))

    @property
    def plain(self) -> Objective:
        return self.objective.plain

    @abstractmethod
    def term(self, trace: Mapping[str, Tensor], y: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """(N, B): the term of each draw; ``y`` (B,) are the true labels, ``given`` the arguments named in `expects`."""

    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        steering = self.weight * mean_over_draws(self.term(trace, y, given))
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

    def term(self, trace: Mapping[str, Tensor], y: Tensor, given: Mapping[str, Tensor]) -> Tensor:
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

    def term(self, trace: Mapping[str, Tensor], y: Tensor, given: Mapping[str, Tensor]) -> Tensor:
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

    def term(self, trace: Mapping[str, Tensor], y: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return margin(trace["reference_logits"], y)


class MoveAttention(SteeredObjective):
    """``objective`` + ``weight`` * attention where the perturbation lies: against `HeterogeneousNoise`, whose mask is
    made from the attention of the undefended victim, which the attacker can move. A negative weight makes the victim
    look elsewhere, so that the perturbation keeps to the pixels of little noise.

    The term is the attention's mean over pixels, weighted by the squared perturbation of the query; the weights are
    constants. Without a perturbation it is the plain mean.

    Args:
        objective: the loss of the logits.
        weight: of the attention, which lies in [0, 1]; finite and not 0.
    """

    needs = ("attention",)
    expects = (PERTURBATION,)

    def term(self, trace: Mapping[str, Tensor], y: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        attention = trace["attention"].double().flatten(2)
        energy = given[PERTURBATION].detach().double().square().sum(1, keepdim=True)
        if energy.shape[-2:] != trace["attention"].shape[-2:]:
            energy = F.interpolate(energy, trace["attention"].shape[-2:], mode="bilinear", align_corners=False)
        energy = energy.flatten(1)
        energy = torch.where(energy.sum(1, keepdim=True) > 0, energy, 1.0)
        return (energy * attention).sum(2) / energy.sum(1)
