"""What the loop of a first-order attack remembers: its best iterates, and statistics of its gradients."""

import torch
from torch import Tensor

from lustral.attacks.engine import Answer
from lustral.attacks.victim import Cases, group_sum, whole_groups
from lustral.votes import strictly_right

MEASURES = ("zero_gradients", "right_draws", "loss_first", "loss_last", "predicted_gain")
"""The names of the statistics of an attack that follows gradients (see `AttackResult`)."""


class Leaderboard:
    """The ``size`` iterates of highest loss per image, and for a deterministic defence the first one that breaks it.

    Where images are judged together, losses and verdicts are those of groups. One wrong answer decides a case only if
    the defence is deterministic. For a random defence this would be optional stopping: one draw in each of 100 steps
    "breaks" most images that nobody attacked.
    """

    def __init__(self, cases: Cases, size: int, may_decide: bool, group_size: int) -> None:
        images = cases.images
        self.may_decide, self._aim, self._group_size = may_decide, cases.aim, group_size
        self.decided = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.broken = images.clone()
        self.images = images.repeat(size, 1, 1, 1, 1)
        self.losses = images.new_full((size, len(images)), -torch.inf, dtype=torch.float64)
        self.entered: list[Tensor] = []  # finalists whatever their loss: last iterates, and those of ``spread``
        self._clean = images

    def offer(self, rows: Tensor, y: Tensor, query: Tensor, answer: Answer) -> None:
        """Enter an iterate if its loss is among the highest; ``answer`` is of draws that the iterate has not seen."""
        aim = None if self._aim is None else self._aim[rows]
        loss = group_sum(answer.rank.double().nan_to_num(-torch.inf), self._group_size, aim)
        slot = self.losses[:, rows].argmin(0)
        better = loss > self.losses[slot, rows]
        self.images[slot, rows] = torch.where(better[:, None, None, None], query, self.images[slot, rows])
        self.losses[slot, rows] = torch.where(better, loss, self.losses[slot, rows])
        if self.may_decide:
            wrong = whole_groups(~strictly_right(answer.logits[0], y), self._group_size, aim)
            broken = wrong & ~self.decided[rows]
            self.broken[rows] = torch.where(broken[:, None, None, None], query, self.broken[rows])
            self.decided[rows] |= broken

    def enter(self, rows: Tensor, query: Tensor) -> None:
        """Make an iterate a finalist, whatever its loss."""
        self.entered.append(self._clean.index_copy(0, rows, query))


class GradientStatistics:
    """The audit's statistics of the first restart: whether gradients are zero, and whether steps raise the loss as
    predicted."""

    def __init__(self, images: Tensor) -> None:
        zero = images.new_zeros(len(images))
        self.first, self.last, self.predicted = zero.clone(), zero.clone(), zero.clone()
        self._zero_rows, self._right_rows = zero.clone(), zero.clone()
        self._steps, self._ahead = zero.clone(), zero.clone()
        self._bad = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def check(self, rows: Tensor, answer: Answer) -> None:
        """Mark the cases whose answer has a NaN or Inf, in any step of any restart."""
        finite = answer.loss.isfinite() & answer.gradient.flatten(1).isfinite().all(1)
        self._bad[rows] |= ~(finite & answer.logits.isfinite().all(-1).all(0))

    def mark(self, failed: Tensor) -> None:
        """Mark the cases ``failed`` (B,) that met NaN or Inf elsewhere."""
        self._bad |= failed

    def record(self, rows: Tensor, query: Tensor, answer: Answer, following: Tensor) -> None:
        self.first[rows] = torch.where(self._steps[rows] == 0, answer.loss, self.first[rows])
        self.last[rows] = answer.loss
        self.predicted[rows] = self._ahead[rows]
        self._ahead[rows] += (answer.gradient * (following - query)).flatten(1).sum(1)
        self._zero_rows[rows] += answer.zero_rows
        self._right_rows[rows] += answer.right_rows
        self._steps[rows] += 1

    def result(self) -> dict[str, Tensor]:
        """The statistics, (B,) each: NaN for every marked case, which `Attack` then counts as failed."""
        found = {
            "zero_gradients": self._zero_rows / self._right_rows.clamp_min(1),
            "right_draws": self._right_rows,
            "loss_first": self.first,
            "loss_last": self.last,
            "predicted_gain": self.predicted,
        }
        return {name: values.masked_fill(self._bad, torch.nan) for name, values in found.items()}
