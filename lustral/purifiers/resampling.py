"""The order of network calls in a reverse process with a mask: which levels each goes between, and what is set where.

Pei et al., CVPR 2025, algorithm 1 and section 4; docs/heterogeneous.md.
"""

import itertools
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lustral.diffusion import DiscreteSchedule, NoiseSchedule
from lustral.diffusion.schedules import MAX_TIME, coefficient
from lustral.diffusion.solvers import added_variance, level

Compose = Literal["before", "after"]
Resample = Literal["multi_step", "one_hop", "fused"]


class Hop(NamedTuple):
    """One network call: noise is added from ``start`` up to ``via``, and removed from there down to ``end``.

    Attributes:
        start, via, end: float64, (), in noising steps out of 1000; via >= start, via > end.
        composed: the one of these levels at which the pixels outside of the mask are set to the noised input image;
            None: nowhere.
        step: number of the step of the grid.
        round: number of the resampling round, 0 for the step itself. Both key the noise.
    """

    start: Tensor
    via: Tensor
    end: Tensor
    composed: None | Literal["start", "via", "end"]
    step: int
    round: int


def two_stage_grid(schedule: NoiseSchedule, t_large: float, t_small: float, num_steps: int | tuple[int, int]) -> Tensor:
    """Descending float64 times from ``t_large`` to the end of the schedule's grids.

    ``num_steps`` even steps; or so many down to ``t_small`` and so many from there, rounded up to the levels of a
    table.

    Raises:
        ValueError: if a number of steps is out of range.
    """
    if isinstance(num_steps, int):
        return schedule.grid(t_large, num_steps)
    first, second = num_steps
    end = schedule.grid(t_small, second)
    if first == 0 and t_large == t_small:
        return end
    if first < 1 or t_large == t_small:
        raise ValueError(
            f"num_steps is {list(num_steps)}: from t_large = {t_large} to t_small = {t_small} it takes "
            f"{'no step' if t_large == t_small else 'at least 1 step'}."
        )
    times = torch.linspace(t_large, t_small, first + 1, dtype=torch.float64)
    if isinstance(schedule, DiscreteSchedule):
        unit = MAX_TIME / schedule.levels
        times = (times / unit - 1e-9).ceil() * unit
    if not (times[:-1] > times[1:]).all():
        raise ValueError(
            f"num_steps is {list(num_steps)}, but there are fewer levels between t_large = {t_large} and t_small = "
            f"{t_small}: take fewer steps."
        )
    return torch.cat((times[:-1], end))


def in_stage_one(grid: Tensor, t_small: float) -> int:
    """The number of steps of ``grid`` that end at ``t_small`` or above."""
    return int((grid[1:] >= t_small - 1e-9).sum())


def checked_reach(
    schedule: NoiseSchedule, t_large: float, resample: Resample, rounds: int, jump_length: float
) -> float:
    """The noising steps that one_hop and fused go up: ``rounds`` times ``jump_length``.

    Raises:
        ValueError: if one of these is out of range, or they lead above the last level or between those of a table.
    """
    if rounds < 0 or not jump_length > 0:
        raise ValueError(
            f"num_resamples is {rounds} and jump_length {jump_length}; the first cannot be negative, the second must "
            "be positive."
        )
    reach = rounds * jump_length
    if resample != "multi_step":
        if t_large + reach > MAX_TIME:
            raise ValueError(
                f"num_resamples * jump_length = {reach} noising steps on top of t_large = {t_large} are more than "
                f"{MAX_TIME}: lower one of them."
            )
        if isinstance(schedule, DiscreteSchedule) and (reach * schedule.levels / MAX_TIME) % 1:
            raise ValueError(
                f"num_resamples * jump_length = {reach} noising steps are no whole number of the {schedule.levels} "
                "levels of the denoiser's table: change jump_length."
            )
    return reach


def plan(grid: Tensor, t_small: float, compose: Compose, resample: Resample, rounds: int, reach: float) -> list[Hop]:
    """The network calls of a reverse process along ``grid`` (K + 1,), in their order.

    In stage 1, that is in the steps of the grid that end at ``t_small`` or above, the pixels outside of the mask are
    set to the noised input, before or after noise is removed, and each step from t to s is resampled:

    * multi_step: s is noised back to t and the step taken again, ``rounds`` times (RePaint, Lugmayr et al. 2022);
    * one_hop: s is noised by ``reach`` noising steps, in one go, and all of that removed by one more network call
      (equation 11);
    * fused: t is noised by ``reach`` before the one network call, which removes noise down to s (the public code).
    """
    hops = list[Hop]()
    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        if i >= in_stage_one(grid, t_small):
            hops.append(Hop(t, t, s, None, i, 0))
        elif resample == "fused":
            hops.append(Hop(t, t + reach, s, "end" if compose == "after" else "start", i, 0))
        else:
            at = "end" if compose == "after" else "via"
            hops.append(Hop(t, t, s, at, i, 0))
            if resample == "multi_step":
                hops += [Hop(s, t, s, at, i, u) for u in range(1, rounds + 1)]
            elif reach:
                hops.append(Hop(s, s + reach, s, None, i, 1))
    return hops


def noised_further(schedule: NoiseSchedule, x: Tensor, s: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t from ``x`` = x_s (B, C, H, W) by the forward process, with standard normal ``noise``: in law that of all the
    steps between them (equation 10)."""
    at_s, at_t = level(schedule, s), level(schedule, t)
    return coefficient(at_t.alpha / at_s.alpha, x) * x + coefficient(added_variance(at_t, at_s).sqrt(), x) * noise
