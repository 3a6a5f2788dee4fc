"""Network calls of one shape, whatever the number of rows at hand.

Between shapes the last bits of a convolution differ, between slots of one shape they do not (where the machine keeps
its side: `lustral.evaluation.selfcheck`). So whatever works row by row is called with exactly R rows, and a row's bits
do not depend on how many others happen to be with it.
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
        rows: R, of every network call; None calls with as many rows as there are. It decides the last bits.
        graph_budget: bytes that kept graphs of an unrolled trajectory may take (see `lustral.diffusion.unroll`); it
            never changes a result.
        calls: rows that networks were asked about, by name, padding left out (see `lustral.evaluation.cost`).
        filled: share of the present call's rows that are not padding.
        padding: rows that networks were asked about only to fill a call, of all forward passes.
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
        """``function(*given)`` in calls of exactly R rows, the last one padded with copies of its last row.

        ``function`` works row by row. ``given`` are tensors, noise streams, dicts, lists and tuples of them, with
        the same number of rows each; tensors of no dimension, numbers and None are the same for all rows. So are its
        answers. Hand over a whole step, activations included: on a CPU, the last
        elements of a tensor may be rounded otherwise in another shape. A call of R rows within a call passes through.
        Padding is no part of a graph.
        """
        total = num_rows(given)
        if len(sizes := set(_sizes(given))) > 1:
            raise ValueError(f"What works row by row was given {sorted(sizes)} rows: they must be as many everywhere.")
        if self.rows is None or total in (0, self.rows):  # no rows: whoever routes may have none to send this way
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
        """Calls inside have this share of rows that are not padding."""
        before = self.filled
        self.filled = before * share
        try:
            yield
        finally:
            self.filled = before


def num_rows(tree: Any) -> int:
    """The rows of the first tensor or noise stream in ``tree`` that has any."""
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
    """Some ``rows``, (n,) int64, of everything in ``tree``."""
    return mapped(tree, lambda part: part.select(rows) if isinstance(part, NoiseStream) else part[rows])


def _rows(tree: Any, first: int, used: int, size: int) -> Any:
    """``used`` rows from ``first`` on, and copies of the last of them up to ``size``."""

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
    """Answers to one piece after another as one."""
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
