"""Objectives that add to a loss something of what happened inside the purifier."""

import math
from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor

from lustral.attacks.objectives import Objective, mean_over_draws

_NOTHING: Mapping[str, Tensor] = {}


class SteeredObjective(Objective):
    """``objective`` + ``weight`` * the mean over draws of a term of the purifier's trace.

    The term helps to find iterates; it is no harm by itself, so it takes no part in ranking them.

    Args:
        objective: the loss of the logits.
        weight: of the term; a negative one lowers it.
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
    def term(self, trace: Mapping[str, Tensor]) -> Tensor:
        """(N, B): what is added for each draw."""

    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        steering = self.weight * mean_over_draws(self.term(trace))
        return self.objective(logits, y, trace, given) + steering.to(logits.dtype)

    def wrongness(self, logits: Tensor, y: Tensor) -> Tensor:
        return self.objective.wrongness(logits, y)


class WithScore(SteeredObjective):
    """``objective`` + ``weight`` * log(perturbation score): against `SSNI`, whose levels follow the score.

    A positive weight asks for more noise than the image deserves, so that the defence forgets what it shows; a negative
    one for so little that the perturbation survives. Which of them harms is for the experiment to tell.

    The score has a gradient where levels are not rounded, or rounded straight through: attack through such a `Variant`.
    Elsewhere it is a constant, and the attack is refused.

    Args:
        objective: the loss of the logits.
        weight: of the logarithm of the score.
    """

    needs = ("score",)

    def term(self, trace: Mapping[str, Tensor]) -> Tensor:
        return trace["score"].log()


class Deviation(SteeredObjective):
    """``objective`` + ``weight`` * deviation: the reverse process is also driven away from the forward one.

    The deviation is the mean squared distance between the state after a reverse step and the image noised to the same
    level with the very noise of the forward process, at every step (see `RoundPurifier.run`). This is in the manner of
    DiffAttack (Kang et al. 2023), whose deviated-reconstruction loss weights the steps; here they weigh alike, and its
    gradient is the exact one of the whole process instead of a sum over segments.

    Args:
        objective: the loss of the logits.
        weight: of the deviation, which is per pixel and step in diffusion space, [-1, 1].
    """

    needs = ("deviation",)

    def term(self, trace: Mapping[str, Tensor]) -> Tensor:
        return trace["deviation"]
