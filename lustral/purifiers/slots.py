"""Reverse steps for rows whose noise levels differ.

Two layouts, both exact. On a *clock* all rows share one descending grid of times: a row joins at its own level, with
a first step that may be short, and from there on walks with the others; so a row costs as many steps as its level
has grid points below, and a batch the sum over its rows. On an *own grid* each row goes from its own level to 0 in the
same number of steps (the fixed-step surrogates of attacks); steps that rounding makes empty are left out.

Levels are noising steps out of 1000, (B,) float64. A row at level 0 is left as it is.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lustral.diffusion import DiscreteSchedule, NoiseSchedule
from lustral.diffusion.schedules import MAX_TIME

Layout = Literal["clock", "own"]
Times = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Slot:
    """One reverse step of those rows that take it.

    Attributes:
        key: names its noise, the same for every row and batch; the last step of all is the highest.
        rows: (n,) int64, or None for all of them.
        times: from the levels of these rows, (n,), to where their step starts and ends, (n,) or ().
    """

    key: int
    rows: Tensor | None
    times: Times


def shared(grid: Tensor) -> list[Slot]:
    """The steps of rows that all walk down ``grid``, (K + 1,) descending."""
    return [Slot(i, None, _constant(grid[i], grid[i + 1])) for i in range(len(grid) - 1)]


def clock(grid: Tensor, levels: Tensor) -> list[Slot]:
    """The steps of rows that join ``grid`` (K + 1,) at their own ``levels`` (B,), the highest first.

    Above its first time the grid goes on with its widest step, for levels beyond it.
    """
    edges, steps = grid.flip(0).tolist(), len(grid) - 1
    widest = max(b - a for a, b in itertools.pairwise(edges))
    host = levels.detach().cpu()  # the one wait for the device: how many rows walk is a shape
    while edges[-1] < float(host.max()):
        edges.append(min(edges[-1] + widest, MAX_TIME))
    found = []
    for j in reversed(range(len(edges) - 1)):
        walking = host > edges[j]
        if walking.any():
            found.append(Slot(steps - 1 - j, _rows(walking, levels.device), _joining(edges[j + 1], edges[j])))
    return found


def own_grid(schedule: NoiseSchedule, num_steps: int, levels: Tensor) -> list[Slot]:
    """``num_steps`` even steps from each row's own level (B,), rounded up to the levels of a tabulated schedule."""
    unit = MAX_TIME / schedule.levels if isinstance(schedule, DiscreteSchedule) else None
    end = float(schedule.grid(MAX_TIME, 1)[-1])  # 0, or where a continuous reverse process stops
    host, found = levels.detach().cpu(), []
    for k in reversed(range(num_steps)):
        times = _even(k, num_steps, unit, end)
        start, stop = times(host)
        walking = start > stop
        if walking.any():
            found.append(Slot(num_steps - 1 - k, _rows(walking, levels.device), times))
    return found


def _rows(walking: Tensor, device: torch.device) -> Tensor | None:
    return None if bool(walking.all()) else walking.nonzero().flatten().to(device)


def _constant(start: Tensor, stop: Tensor) -> Times:
    return lambda levels: (start, stop)


def _joining(start: float, stop: float) -> Times:
    return lambda levels: (levels.clamp_max(start), torch.full_like(levels, stop))


def _even(k: int, num_steps: int, unit: float | None, end: float) -> Times:
    """From (k + 1) to k of ``num_steps`` parts of the level."""

    def part(levels: Tensor, of: int) -> Tensor:
        at = levels * (of / num_steps)
        if unit is not None:
            at = (levels / unit * of / num_steps - 1e-9).ceil() * unit
        return at.clamp_min(end) if of == 0 else at

    return lambda levels: (part(levels, k + 1), part(levels, k))
