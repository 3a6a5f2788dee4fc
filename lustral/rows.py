"""Network calls of one fixed shape, whatever the number of rows.

The last bits of a convolution differ between input shapes, but not between the rows of one shape (on machines where
this holds: `lustral.evaluation.selfcheck` tests it). So every row-wise function is called with exactly R rows, and the
bits of a row do not depend on how many other rows there are.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lustral.noise import NoiseStream


@dataclass(eq=False)
class Runtime:
    """How a run calls networks. One object is shared by the defence, its parts and every surrogate.

    Attributes:
        rows: R, the number of rows of every network call; None takes as many as there are. It decides the last bits.
        graph_budget: bytes that the kept graphs of an unrolled trajectory may take (see `lustral.diffusion.unroll`); it
            never changes a result.
        calls: number of rows that networks were called with, by name, without padding (see `lustral.evaluation.cost`).
        filled: share of the rows in the present call that are not padding.
        padding: number of rows that only padded a network call, over all forward passes.
    """

    rows: int | None = None
    graph_budget: float = 0.0
    calls: Counter[str] = field(default_factory=Counter)
    filled: float = 1.0
    padding: int = 0

    def __post_init__(self) -> None:
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"rows is {self.rows}; a network call needs at least one row.")

    def call(self, function: Callable[..., Any], *given: Any) -> Any:
        """``function(*given)`` in calls of exactly R rows; the last call is padded with copies of its last row.

        ``function`` must work row by row, and return what it may be given: tensors, noise streams, and dicts, lists and
        tuples of them, all with the same number of rows; tensors without dimensions, numbers and None hold for all
        rows. Let ``function`` be a whole step, elementwise operations included: on a CPU, the last elements of a tensor
        may be rounded differently in another shape. Inside ``function``, a call with R rows runs as it is. Padding
        takes no part in the autograd graph.

        Raises:
            ValueError: if ``given`` differ in their number of rows, or ``function`` returns another number of rows.
        """
        total = num_rows(given)
        if len(sizes := set(_sizes(given))) > 1:
            raise ValueError(f"What works row by row was given {sorted(sizes)} rows: they must be as many everywhere.")
        if self.rows is None or total in (0, self.rows):  # a method that routes rows may route none this way
            return function(*given)
        found = []
        for first in range(0, total, self.rows):
            used = min(self.rows, total - first)
            with self.filling(used / self.rows):
                answer = function(*_rows(given, first, used, self.rows))
            if wrong := set(_sizes(answer)) - {self.rows}:
                raise ValueError(
                    f"A function that works row by row made {sorted(wrong)} rows out of {self.rows}: it must answer "
                    "with a row for each, rows first."
                )
            found.append(_rows(answer, 0, used, used))
        return _joined(found)

    @contextmanager
    def filling(self, share: float) -> Iterator[None]:
        """In this context, a ``share`` of the rows of each call is not padding; contexts multiply when nested."""
        before = self.filled
        self.filled = before * share
        try:
            yield
        finally:
            self.filled = before


def num_rows(tree: Any) -> int:
    """The number of rows of the first tensor (with dimensions) or noise stream in ``tree``."""
    found = next(_sizes(tree), None)
    assert found is not None, "nothing here has rows"
    return found


def _sizes(tree: Any) -> Iterator[int]:
    if isinstance(tree, Tensor):
        if tree.ndim:
            yield len(tree)
    elif isinstance(tree, NoiseStream):
        yield len(tree)
    elif isinstance(tree, (tuple, list, dict)):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _sizes(part)


def mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    """``tree`` with ``change`` applied to every tensor that has rows, and every noise stream."""
    if isinstance(tree, Tensor):
        return change(tree) if tree.ndim else tree
    if isinstance(tree, NoiseStream):
        return change(tree)
    if isinstance(tree, dict):
        return {name: mapped(part, change) for name, part in tree.items()}
    if isinstance(tree, list):
        return [mapped(part, change) for part in tree]
    if isinstance(tree, tuple):
        parts = [mapped(part, change) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return tree


def selected(tree: Any, rows: Tensor) -> Any:
    """The given ``rows``, (n,) int64, of every tensor and noise stream in ``tree``."""
    return mapped(tree, lambda part: part.select(rows) if isinstance(part, NoiseStream) else part[rows])


def _rows(tree: Any, first: int, used: int, size: int) -> Any:
    """``used`` rows of ``tree`` from row ``first`` on, padded to ``size`` rows with copies of the last."""

    def piece(part: Any) -> Any:
        if isinstance(part, NoiseStream):
            row = torch.arange(first, first + size, device=part.index.device)
            return part.select(row.clamp_max(first + used - 1))
        own = part[first : first + used]
        if used == size:
            return own
        last = own[-1:].detach()
        return torch.cat((own, last.expand(size - used, *last.shape[1:])))

    return mapped(tree, piece)


def _joined(found: list[Any]) -> Any:
    """The answers ``found`` for consecutive chunks of rows, joined into one."""
    first = found[0]
    if len(found) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(found) if first.ndim else first
    if isinstance(first, dict):
        return {name: _joined([part[name] for part in found]) for name in first}
    parts = [_joined(list(parts)) for parts in zip(*found, strict=True)]
    if isinstance(first, list):
        return parts
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
