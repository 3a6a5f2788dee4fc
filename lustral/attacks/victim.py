"""What an attack is given: the victim, its answers, and the images to attack."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from einops import reduce, repeat
from torch import Tensor

from lustral.diffusion import Context
from lustral.noise import NoiseStream
from lustral.purifiers import GradientMode
from lustral.rows import Runtime


@dataclass(frozen=True)
class Judged:
    """A defence's answer to a batch.

    Attributes:
        logits: (B, K), the merged answer of all views: used for the verdict, for ranking and for deciding a case.
        trace: the wanted entries of the purifier's trace.
        views: (V, B, K) logits of each view, which an objective differentiates where the views vote (vote counts have
            no gradient); None where ``logits`` are differentiable themselves.
    """

    logits: Tensor
    trace: dict[str, Tensor] = field(default_factory=dict)
    views: Tensor | None = None


class Victim(Protocol):
    """A defence as an attack sees it: the system that is judged, with noise that the attack passes in."""

    @property
    def runtime(self) -> Runtime:
        """How networks are called; set by the engine."""
        ...

    @runtime.setter
    def runtime(self, runtime: Runtime) -> None: ...

    @property
    def random(self) -> bool:
        """Whether the answer depends on the noise."""
        ...

    def __call__(
        self,
        x: Tensor,
        noise: NoiseStream,
        gradient: GradientMode = "exact",
        context: Context | None = None,
        wants: Collection[str] = frozenset(),
    ) -> Judged:
        """Judge images (B, C, H, W) with a stream of B rows; ``context`` is handed to the purifier, ``wants`` names
        the trace entries to return."""
        ...


@dataclass(frozen=True)
class Cases:
    """Images under attack, one row each. For a defence that judges groups, whole groups in contiguous blocks.

    Attributes:
        images: (B, C, H, W) in [0, 1].
        labels: (B,).
        index: (B,) positions in the full data set split.
        free: (B,) bool, which images may be perturbed; None: all. (A mixed group has perturbed and clean images.)
        aim: (B,) bool, which images' losses are raised; None: all. (A poisoned group perturbs some images to break
            others.)
        region: (B, 1, H, W) bool, which pixels may be perturbed; None: all.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    free: Tensor | None = None
    aim: Tensor | None = None
    region: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: Tensor) -> "Cases":
        named = ("free", "aim", "region")
        columns = {name: None if (c := getattr(self, name)) is None else c[rows] for name in named}
        return replace(self, images=self.images[rows], labels=self.labels[rows], index=self.index[rows], **columns)

    @property
    def may(self) -> Tensor | None:
        """(B, 1, 1, 1) or (B, 1, H, W) bool, what may be perturbed; None: everything."""
        free = None if self.free is None else self.free[:, None, None, None]
        if free is None or self.region is None:
            return self.region if free is None else free
        return free & self.region

    def confined(self, images: Tensor) -> Tensor:
        """``images`` (B, C, H, W) where they may be perturbed, the clean ones elsewhere."""
        return images if (may := self.may) is None else torch.where(may, images, self.images)


# Groups ----------------------------------------------------------------------


def group_size(victim: object) -> int:
    """m, the number of images that ``victim`` judges together; 1 for most defences."""
    return getattr(victim, "group_size", 1)


def group_sum(values: Tensor, size: int, aim: Tensor | None) -> Tensor:
    """(..., B): for each row the sum of ``values`` (..., B) over the rows of its group that are aimed at; None: all."""
    if aim is not None:
        values = values.masked_fill(~aim, 0)
    if size == 1:
        return values
    sums = reduce(values, "... (groups size) -> ... groups", "sum", size=size)
    return repeat(sums, "... groups -> ... (groups size)", size=size)


def whole_groups(rows: Tensor, size: int, aim: Tensor | None = None) -> Tensor:
    """(B,) bool: for each row whether its group has rows that are aimed at, and ``rows`` (B,) bool holds for all of
    them."""
    if size == 1 and aim is None:
        return rows
    wanted = torch.ones_like(rows) if aim is None else aim
    return (group_sum(wanted.int(), size, None) == group_sum((rows & wanted).int(), size, None)) & (
        group_sum(wanted.int(), size, None) > 0
    )
