"""The losses that attacks raise: one value per image, from the logits of several draws."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from lustral.votes import strictly_right

TARGET = "target"
"""The name of the argument with each image's target class, (B,) int64, which a targeted attack gives."""
PERTURBATION = "perturbation"
"""The name of the argument with the perturbation at the query, (B, C, H, W), which a first-order attack gives."""
_NOTHING: Mapping[str, Tensor] = {}
_NO_SPREAD = 1e-12
"""Added to the denominator of a ratio of logits: equal logits give 0 instead of NaN."""


class Objective(ABC):
    """A loss that an attack raises.

    Attributes:
        separable: whether the loss is the mean over draws of a loss of each draw alone. The engine then needs one
            pass instead of two.
        target: the verdict rule that this loss aims at; under other rules the robust accuracy is one of transfer.
        needs: the entries of the purifier's trace that the loss takes and differentiates.
        expects: the names of the further arguments that the attack must give (targets, multipliers).
    """

    separable: bool = True
    target: str = "expected"
    needs: tuple[str, ...] = ()
    expects: tuple[str, ...] = ()

    @property
    def plain(self) -> "Objective":
        """The loss of the logits alone, which ranks iterates; other terms only steer the search."""
        return self

    @abstractmethod
    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        """The loss of each image, (B,).

        Args:
            logits: (N draws, B, K).
            y: (B,) true labels.
            trace: the entries of the purifier's trace named in `needs`, (N, B, ...) each.
            given: the arguments named in `expects`, (B, ...) each: a target, a multiplier, clean logits.
        """

    def ranked(self, plain: Tensor, trace: Mapping[str, Tensor]) -> Tensor:
        """(B,): the ranks of iterates with ``plain`` losses (B,), by default these. An objective that follows one
        branch of a defence ranks iterates last that take another; ``trace`` has the entries named in `needs`."""
        return plain

    def wrongness(self, logits: Tensor, y: Tensor) -> Tensor:
        """(B,) float64 in [0, 1]: how wrong ``logits`` (N draws, B, K) are under the verdict rule aimed at. By default
        the share of misclassified draws; ties are wrong, as in every verdict (votes of a few views often tie)."""
        return (~strictly_right(logits, y)).double().mean(0)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest wrong logit minus the true one, (..., B) from (..., B, K): positive means misclassified."""
    is_true = F.one_hot(y, logits.shape[-1]).bool().expand_as(logits)
    wrong = logits.masked_fill(is_true, -torch.inf).amax(-1)
    return wrong - logits.masked_fill(~is_true, 0.0).sum(-1)


def _largest(logits: Tensor, count: int, name: str) -> tuple[Tensor, ...]:
    """The ``count`` largest logits, (..., B) each from (..., B, K); ``name`` is the loss named in the error."""
    if logits.shape[-1] < count:
        raise ValueError(
            f"{name} compares the {count} largest logits, but this classifier has {logits.shape[-1]} classes: choose "
            "another objective, such as Margin."
        )
    return logits.topk(count).values.unbind(-1)


def _of_class(logits: Tensor, label: Tensor) -> Tensor:
    """The logits (..., B) of each row's class ``label`` (B,)."""
    return logits.gather(-1, label.expand(logits.shape[:-1])[..., None])[..., 0]


def mean_over_draws(values: Tensor) -> Tensor:
    """The mean over the first dimension, summed in order: the order of a torch reduction may depend on the batch."""
    total = values[0]
    for draw in values[1:]:
        total = total + draw
    return total / len(values)


class CrossEntropy(Objective):
    """Mean over draws of the cross-entropy. Its gradient vanishes as the probability of the true class approaches 1."""

    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        draws = logits.shape[0]
        loss = F.cross_entropy(logits.flatten(0, 1), y.repeat(draws), reduction="none")
        return mean_over_draws(loss.view(draws, -1))


class Margin(Objective):
    """Mean over draws of (largest wrong logit - true logit), the Carlini-Wagner loss without its threshold."""

    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        return mean_over_draws(margin(logits, y))


class DifferenceOfLogitsRatio(Objective):
    """Mean over draws of DLR (Croce and Hein 2020, eq. 6): the margin divided by (largest - third largest logit).

    Unlike the cross-entropy and the margin, DLR is invariant to the scale of the logits. It needs at least 3 classes.
    """

    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        first, _, third = _largest(logits, 3, "DifferenceOfLogitsRatio")
        return mean_over_draws(margin(logits, y) / (first - third + _NO_SPREAD))


class Targeted(Objective):
    """A loss that is raised by moving an image towards a target class, which the attack chooses."""

    expects = (TARGET,)

    def gained(self, logits: Tensor, y: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """(N, B) the target's logit minus the true one."""
        return _of_class(logits, given[TARGET]) - _of_class(logits, y)


class TargetMargin(Targeted):
    """Mean over draws of (target's logit - true logit): `FAB` searches for its zeros. Iterates are ranked by the
    untargeted `Margin`."""

    @property
    def plain(self) -> Objective:
        return Margin()

    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        return mean_over_draws(self.gained(logits, y, given))


class TargetedDifferenceOfLogitsRatio(Targeted):
    """Mean over draws of the targeted DLR (Croce and Hein 2020, eq. 7): (target's logit - true logit) divided by
    (largest logit - mean of the third and fourth largest).

    Iterates are ranked by the untargeted DLR, since any wrong class is a success. It needs at least 4 classes.
    """

    @property
    def plain(self) -> Objective:
        return DifferenceOfLogitsRatio()

    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        first, _, third, fourth = _largest(logits, 4, "TargetedDifferenceOfLogitsRatio")
        return mean_over_draws(self.gained(logits, y, given) / (first - 0.5 * (third + fourth) + _NO_SPREAD))


class _OfMeanLogits(Objective):
    """A loss of the mean logits over draws: it aims at the `mean_logit` rule."""

    separable = False
    target = "mean_logit"

    def wrongness(self, logits: Tensor, y: Tensor) -> Tensor:
        return (~strictly_right(mean_over_draws(logits), y)).double()


class MeanLogitMargin(_OfMeanLogits):
    """The margin of the mean logits over draws: it aims at the `mean_logit` rule."""

    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        return margin(mean_over_draws(logits), y)


class MeanLogitCrossEntropy(_OfMeanLogits):
    """The cross-entropy of the mean logits over draws, as in BPDA+EOT (Hill et al. 2021): it aims at the `mean_logit`
    rule."""

    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        return F.cross_entropy(mean_over_draws(logits), y, reduction="none")


class SelectiveMargin(Objective):
    """A soft maximum of the margins over draws: it weights draws that are broken or nearly broken most.

    With m the margin of a draw, the loss is temperature * log(mean over draws of G(m / temperature)), where G(u) is
    exp(u) below 0 and 1 + u above. Its gradient is a weighted mean of the gradients of the margins, with weights
    proportional to exp(min(m, 0) / temperature): misclassified draws all weigh the same, and a draw that is classified
    correctly by many temperatures has almost no weight.

    The idea is DiffHammer's (Wang et al. 2024): attack the purifications that can be broken, because the gradients of
    the others point elsewhere. It is not their algorithm: there are no expectation-maximisation steps, no average of
    gradients over iterations, and no grafting of gradients.

    Args:
        temperature: in units of logits, positive; the loss approaches the mean of the margins as it grows.
    """

    separable = False

    def __init__(self, temperature: float = 1.0) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature}; it must be positive and finite.")
        self.temperature = temperature

    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        # In float64: the last bits of a float32 exponential depend on its place in the batch.
        u = margin(logits, y).double() / self.temperature
        log_g = torch.where(u < 0, u, u.clamp_min(0.0).log1p())
        highest = log_g.detach().amax(0)
        return (self.temperature * (mean_over_draws((log_g - highest).exp()).log() + highest)).to(logits.dtype)
