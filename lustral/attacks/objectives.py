"""What an attack ascends: a loss an image of the logits of several draws."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from lustral.votes import strictly_right

TARGET = "target"
"""What an attack gives along: (B,) int64, the class that each image is led to."""
_NOTHING: Mapping[str, Tensor] = {}
_NO_SPREAD = 1e-12
"""Added to the spread of logits that a ratio divides by: equal ones give 0 and not NaN."""


class Objective(ABC):
    """A loss to be raised.

    Attributes:
        separable: whether the loss is the mean over draws of a loss of each draw alone. The engine then needs one
            pass instead of two.
        target: the verdict rule that this loss aims at; other rules' robust numbers are transferred.
        needs: the entries of the purifier's trace that the loss looks at, and whose gradients it follows.
        expects: what an attack must give along, by name (targets, multipliers).
    """

    separable: bool = True
    target: str = "expected"
    needs: tuple[str, ...] = ()
    expects: tuple[str, ...] = ()

    @property
    def plain(self) -> "Objective":
        """The loss of the logits alone, which ranks iterates: other terms only steer the search."""
        return self

    @abstractmethod
    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        """(B,) losses of ``logits`` (N draws, B, K) with true labels ``y`` (B,). ``trace`` has what the loss `needs` of
        the purifier's, (N, B, ...) each; ``given`` what the attack says of each image, (B, ...) each: its target, a
        multiplier, the clean logits."""

    def wrongness(self, logits: Tensor, y: Tensor) -> Tensor:
        """(B,) float64 in [0, 1]: how wrong ``logits`` (N draws, B, K) are under the rule aimed at. By default the
        share of wrong draws; ties are wrong, as in every verdict (votes of a few views often tie)."""
        return (~strictly_right(logits, y)).double().mean(0)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The best wrong logit minus the true one, (..., B) from (..., B, K): positive means misclassified."""
    is_true = F.one_hot(y, logits.shape[-1]).bool().expand_as(logits)
    wrong = logits.masked_fill(is_true, -torch.inf).amax(-1)
    return wrong - logits.masked_fill(~is_true, 0.0).sum(-1)


def _largest(logits: Tensor, count: int, name: str) -> tuple[Tensor, ...]:
    """The ``count`` largest logits, (..., B) each from (..., B, K), for a loss called ``name`` that needs them."""
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
    """The mean over the first dimension, summed in its order: a reduction's order may depend on the batch."""
    total = values[0]
    for draw in values[1:]:
        total = total + draw
    return total / len(values)


class CrossEntropy(Objective):
    """Mean over draws of the cross-entropy. Its gradient fades where the true class has probability one."""

    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        draws = logits.shape[0]
        loss = F.cross_entropy(logits.flatten(0, 1), y.repeat(draws), reduction="none")
        return mean_over_draws(loss.view(draws, -1))


class Margin(Objective):
    """Mean over draws of (best wrong logit - true logit), the Carlini-Wagner loss without its threshold."""

    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        return mean_over_draws(margin(logits, y))


class DifferenceOfLogitsRatio(Objective):
    """Mean over draws of DLR (Croce and Hein 2020, eq. 6): the margin over (largest - third largest logit).

    Unlike the cross-entropy and the margin it does not change with the scale of the logits. At least 3 classes.
    """

    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        first, _, third = _largest(logits, 3, "DifferenceOfLogitsRatio")
        return mean_over_draws(margin(logits, y) / (first - third + _NO_SPREAD))


class Targeted(Objective):
    """A loss that leads every image to a class which the attack chooses."""

    expects = (TARGET,)

    def gained(self, logits: Tensor, y: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """(N, B) the target's logit minus the true one."""
        return _of_class(logits, given[TARGET]) - _of_class(logits, y)


class TargetMargin(Targeted):
    """Mean over draws of (target's logit - true logit): `FAB` walks to where it is 0. Iterates are ranked by the margin
    of any wrong class."""

    @property
    def plain(self) -> Objective:
        return Margin()

    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        return mean_over_draws(self.gained(logits, y, given))


class TargetedDifferenceOfLogitsRatio(Targeted):
    """Mean over draws of the targeted DLR (Croce and Hein 2020, eq. 7): the target's logit minus the true one, over
    (largest - mean of the third and fourth largest).

    Iterates are ranked by the DLR without a target: any wrong class is harm. At least 4 classes.
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
    """A loss of the mean logits over draws: aims at the `mean_logit` rule."""

    separable = False
    target = "mean_logit"

    def wrongness(self, logits: Tensor, y: Tensor) -> Tensor:
        return (~strictly_right(mean_over_draws(logits), y)).double()


class MeanLogitMargin(_OfMeanLogits):
    """The margin of the mean logits over draws: aims at the `mean_logit` rule."""

    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        return margin(mean_over_draws(logits), y)


class MeanLogitCrossEntropy(_OfMeanLogits):
    """The cross-entropy of the mean logits over draws, as BPDA+EOT has it (Hill et al. 2021): aims at the `mean_logit`
    rule."""

    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        return F.cross_entropy(mean_over_draws(logits), y, reduction="none")


class SelectiveMargin(Objective):
    """A margin that follows the draws which are broken or nearly so, instead of averaging over all of them.

    With m the margin of a draw, the loss is temperature * log(mean over draws of G(m / temperature)), where G(u) is
    exp(u) below 0 and 1 + u above. Its gradient is that of the margins, with weights over an image's draws in
    proportion to exp(min(m, 0) / temperature): all draws that are wrong already pull alike, one that is right by many
    temperatures not at all.

    This is in the manner of DiffHammer (Wang et al. 2024), which attacks the purifications that can be broken because
    the gradients of the others point elsewhere. It is not their algorithm: there are no expectation-maximisation steps,
    no average of gradients over iterations, and no grafting of gradients.

    Args:
        temperature: in units of logits; large ones give the mean of the margins back.
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
