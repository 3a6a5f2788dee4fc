"""Reverse steps for rows whose noise levels differ.

There are two layouts, both exact. With "clock", all rows share one descending grid of times: a row joins at its own
level, with a first step that may be shorter, and then takes the same steps as the others. A row costs one step for each
grid point below its level, and a batch the sum over its rows. With "own", each row goes from its own level to the end
of the grid in the same number of steps (for surrogates with few steps); steps that rounding makes empty are skipped.

Levels are in noising steps out of 1000, (B,) float64. A row at level 0 is not changed.
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
    """One reverse step, and the rows that take it.

    Attributes:
        key: the step number that keys its noise, the same for every row and batch; the last step has the highest.
        rows: (n,) int64, the rows that take the step; None: all.
        times: function from the levels of these rows, (n,), to the times at which the step starts and ends, (n,) or ().
    """

    key: int
    rows: Tensor | None
    times: Times


def shared(grid: Tensor) -> list[Slot]:
    """The K steps of rows that all follow ``grid``, (K + 1,) descending."""
    return [Slot(i, None, _constant(grid[i], grid[i + 1])) for i in range(len(grid) - 1)]


def clock(grid: Tensor, levels: Tensor) -> list[Slot]:
    """The steps of rows that join ``grid`` (K + 1,) at their own ``levels`` (B,), in descending order of time.

    For levels above the first time of the grid, the grid is extended upwards with its widest step.
    """
    edges, steps = grid.flip(0).tolist(), len(grid) - 1
    widest = max(b - a for a, b in itertools.pairwise(edges))
    host = levels.detach().cpu()  # the only device synchronisation: the number of rows in a step is a shape
    while edges[-1] < float(host.max()):
        edges.append(min(edges[-1] + widest, MAX_TIME))
    found = []
    for j in reversed(range(len(edges) - 1)):
        walking = host > edges[j]
        if walking.any():
            found.append(Slot(steps - 1 - j, _rows(walking, levels.device), _joining(edges[j + 1], edges[j])))
    return found


def own_grid(schedule: NoiseSchedule, num_steps: int, levels: Tensor) -> list[Slot]:
    """``num_steps`` even steps from each row's own level (B,); times are rounded up to the levels of a tabulated
    schedule."""
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
    """The times of a step from (k + 1) / num_steps to k / num_steps of the level."""

    def part(levels: Tensor, of: int) -> Tensor:
        at = levels * (of / num_steps)
        if unit is not None:
            at = (levels / unit * of / num_steps - 1e-9).ceil() * unit
        return at.clamp_min(end) if of == 0 else at

    return lambda levels: (part(levels, k + 1), part(levels, k))
