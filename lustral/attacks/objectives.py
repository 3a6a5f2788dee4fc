"""What an attack ascends: a loss an image of the logits of several draws."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor


class Objective(ABC):
    """A loss to be raised.

    Attributes:
        separable: whether the loss is the mean over draws of a loss of each draw alone. The engine then needs one
            pass instead of two.
        target: the verdict rule that this loss aims at; other rules' robust numbers are transferred.
    """

    separable: bool = True
    target: str = "expected"

    @abstractmethod
    def __call__(self, logits: Tensor, y: Tensor, trace: dict[str, Tensor]) -> Tensor:
        """(B,) losses of ``logits`` (N draws, B, K) with true labels ``y`` (B,). ``trace`` is the purifier's."""

    def wrongness(self, logits: Tensor, y: Tensor) -> Tensor:
        """(B,) float64 in [0, 1]: how wrong ``logits`` (N draws, B, K) are under the rule aimed at. By default the
        share of wrong draws."""
        return (logits.argmax(-1) != y).double().mean(0)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The best wrong logit minus the true one, (..., B) from (..., B, K): positive means misclassified."""
    is_true = F.one_hot(y, logits.shape[-1]).bool().expand_as(logits)
    wrong = logits.masked_fill(is_true, -torch.inf).amax(-1)
    return wrong - logits.masked_fill(~is_true, 0.0).sum(-1)


def mean_over_draws(values: Tensor) -> Tensor:
    """The mean over the first dimension, summed in its order: a reduction's order may depend on the batch."""
    total = values[0]
    for draw in values[1:]:
        total = total + draw
    return total / len(values)


class CrossEntropy(Objective):
    """Mean over draws of the cross-entropy. Its gradient fades where the true class has probability one."""

    def __call__(self, logits: Tensor, y: Tensor, trace: dict[str, Tensor]) -> Tensor:
        draws = logits.shape[0]
        loss = F.cross_entropy(logits.flatten(0, 1), y.repeat(draws), reduction="none")
        return mean_over_draws(loss.view(draws, -1))


class Margin(Objective):
    """Mean over draws of (best wrong logit - true logit), the Carlini-Wagner loss without its threshold."""

    def __call__(self, logits: Tensor, y: Tensor, trace: dict[str, Tensor]) -> Tensor:
        return mean_over_draws(margin(logits, y))


class MeanLogitMargin(Objective):
    """The margin of the mean logits over draws: aims at the `mean_logit` rule."""

    separable = False
    target = "mean_logit"

    def wrongness(self, logits: Tensor, y: Tensor) -> Tensor:
        return (mean_over_draws(logits).argmax(-1) != y).double()

    def __call__(self, logits: Tensor, y: Tensor, trace: dict[str, Tensor]) -> Tensor:
        return margin(mean_over_draws(logits), y)
