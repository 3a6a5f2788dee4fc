"""Verdict rules: whether a random defence is right about an image, from the logits of several draws.

A run stores k draws of logits per sample and computes every rule from them, for clean and adversarial images alike.
"""

from abc import ABC, abstractmethod

from torch import Tensor

from lustral.votes import strictly_right, votes


class VerdictRule(ABC):
    """How right a defence is on each image, in [0, 1].

    Args:
        num_draws: the number of draws that the rule takes, the first of those that are stored; at least 1.

    Attributes:
        name: the rule's name on the card.
        binary: whether a verdict is 0 or 1 (Wilson interval), or a rate (bootstrap over images).
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
        """(B,) float64 in [0, 1] from at least ``num_draws`` draws (N, B, K) and labels (B,); NaN logits are wrong.
        Final: subclasses implement `judge`.

        Raises:
            ValueError: if there are fewer draws.
        """
        if len(logits) < self.num_draws:
            raise ValueError(f"The rule {self.name} takes {self.num_draws} draws, but only {len(logits)} are stored.")
        return self.judge(logits[: self.num_draws].double(), y).double()


class OneShot(VerdictRule):
    """Right if the first draw is right."""

    name = "one_shot"

    def __init__(self) -> None:
        super().__init__(1)

    def judge(self, logits: Tensor, y: Tensor) -> Tensor:
        return strictly_right(logits[0], y)


class Majority(VerdictRule):
    """Right if most draws choose the true class: more than choose any other class."""

    name = "majority"

    def judge(self, logits: Tensor, y: Tensor) -> Tensor:
        return strictly_right(votes(logits), y)


class MeanLogit(VerdictRule):
    """Right if the true class has the highest mean logit over draws."""

    name = "mean_logit"

    def judge(self, logits: Tensor, y: Tensor) -> Tensor:
        return strictly_right(logits.mean(0), y)


class Expected(VerdictRule):
    """The share of draws that are right: the expected accuracy of a single draw."""

    name = "expected"
    binary = False

    def judge(self, logits: Tensor, y: Tensor) -> Tensor:
        return strictly_right(logits, y).double().mean(0)


class Worst(VerdictRule):
    """Right if every draw is right, as against an attacker who may submit an image k times. It falls with k on clean
    images too."""

    name = "worst"

    def judge(self, logits: Tensor, y: Tensor) -> Tensor:
        return strictly_right(logits, y).all(0)


def all_rules(num_draws: int) -> tuple[VerdictRule, ...]:
    """Every verdict rule, on ``num_draws`` draws (`OneShot` on one)."""
    return OneShot(), Majority(num_draws), MeanLogit(num_draws), Expected(num_draws), Worst(num_draws)
