"""Unconditional sampling: the whole reverse process, from pure noise to images."""

import torch
from torch import Tensor

from lustral.diffusion.denoiser import Denoiser, from_diffusion
from lustral.diffusion.schedules import MAX_TIME
from lustral.diffusion.solvers import Solver
from lustral.noise import NoiseStream

LARGEST_TRACE = 0.05
"""The largest alpha / sigma at which sampling may start: pure noise lacks an image of this relative strength."""


@torch.no_grad()
def sample(
    denoiser: Denoiser, noise: NoiseStream, solver: Solver, num_steps: int, t_start: float = MAX_TIME, rows: int = 128
) -> Tensor:
    """One sampled image for each row of ``noise``: (B, C, H, W), the last state clamped to [0, 1].

    The state starts as sigma(t_start) z with z standard normal, and follows ``solver.times``. The noise of a
    sample depends on its key only (the stream's indices are sample numbers), not on ``rows``. The mode of the denoiser
    is not changed: put it into eval mode first. Images are on the device of the stream.

    Args:
        denoiser: the diffusion model.
        noise: the stream of all random numbers, one row per sample.
        solver: the reverse step.
        num_steps: number of reverse steps.
        t_start: the start time, in noising steps out of 1000.
        rows: samples per network call, at least 1.

    Raises:
        ValueError: if the solver cannot follow the schedule, alpha / sigma at ``t_start`` is above `LARGEST_TRACE`, or
            a number is out of its range.
    """
    solver.check(denoiser)
    if rows < 1:
        raise ValueError(f"rows is {rows}; at least 1 sample a network call is needed.")
    times = solver.times(denoiser.schedule, t_start, num_steps)
    trace = float(denoiser.schedule.alpha(times[0]) / denoiser.schedule.sigma(times[0]))
    if round(trace, 9) > LARGEST_TRACE:
        raise ValueError(
            f"t_start is {t_start}, where the image is still {trace:.2f} times as strong as the noise: sampling starts "
            f"from noise alone, which holds from a ratio of {LARGEST_TRACE} downwards; choose t_start near {MAX_TIME}."
        )
    number = torch.arange(len(noise), device=noise.index.device)
    return torch.cat([_chunk(denoiser, noise.select(part), solver, times) for part in number.split(rows)])


def _chunk(denoiser: Denoiser, noise: NoiseStream, solver: Solver, times: Tensor) -> Tensor:
    start, reverse = noise.fork("start"), noise.fork("reverse")
    shape = denoiser.image_shape
    x = denoiser.schedule.sigma(times[0]) * start.normal(shape)
    for i in range(len(times) - 1):
        draw = reverse.normal(shape, step=i) if solver.random else torch.zeros_like(x)
        x = solver.step(denoiser, x, times[i], times[i + 1], draw)
    return from_diffusion(x).clamp(0.0, 1.0)
