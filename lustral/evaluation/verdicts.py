"""Verdict rules: from the logits of several draws of a random defence to right or wrong.

One run stores k draws of logits a sample and computes every rule from them, on clean and on attacked images alike.
"""

from abc import ABC, abstractmethod

from torch import Tensor

from lustral.votes import strictly_right, votes


class VerdictRule(ABC):
    """How right a defence is on each image, in [0, 1].

    Args:
        num_draws: how many draws of logits the rule takes; the first of those that are stored.

    Attributes:
        name: the rule's name on the card.
        binary: whether a verdict is 0 or 1 (a Wilson interval holds), or a rate (bootstrap over images).
    """

    name: str
    binary: bool = True

    def __init__(self, num_draws: int) -> None:
        if num_draws < 1:
            raise ValueError(f"num_draws is {num_draws}; a verdict needs at least one draw.")
        self.num_draws = num_draws

    @abstractmethod
    def judge(self, logits: Tensor, y: Tensor) -> Tensor:
        """(B,) in [0, 1] from exactly ``num_draws`` draws (N, B, K) and labels (B,). Ties are wrong."""

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """(B,) float64 in [0, 1]; NaN logits are wrong. Final: subclasses give `judge`."""
        if len(logits) < self.num_draws:
            raise ValueError(f"The rule {self.name} takes {self.num_draws} draws, but only {len(logits)} are stored.")
        return self.judge(logits[: self.num_draws].double(), y).double()


class OneShot(VerdictRule):
    """One draw decides."""

    name = "one_shot"

    def __init__(self) -> None:
        super().__init__(1)

    def judge(self, logits: Tensor, y: Tensor) -> Tensor:
        return strictly_right(logits[0], y)


class Majority(VerdictRule):
    """The class that most draws choose."""

    name = "majority"

    def judge(self, logits: Tensor, y: Tensor) -> Tensor:
        return strictly_right(votes(logits), y)


class MeanLogit(VerdictRule):
    """The class of the highest mean logit."""

    name = "mean_logit"

    def judge(self, logits: Tensor, y: Tensor) -> Tensor:
        return strictly_right(logits.mean(0), y)


class Expected(VerdictRule):
    """The share of draws that are right: the accuracy that a single draw has on average."""

    name = "expected"
    binary = False

    def judge(self, logits: Tensor, y: Tensor) -> Tensor:
        return strictly_right(logits, y).double().mean(0)


class Worst(VerdictRule):
    """Right in every draw: what is left when the attacker may submit k times. Falls with k on clean images too."""

    name = "worst"

    def judge(self, logits: Tensor, y: Tensor) -> Tensor:
        return strictly_right(logits, y).all(0)


def all_rules(num_draws: int) -> tuple[VerdictRule, ...]:
    """Every rule on ``num_draws`` draws."""
    return OneShot(), Majority(num_draws), MeanLogit(num_draws), Expected(num_draws), Worst(num_draws)
