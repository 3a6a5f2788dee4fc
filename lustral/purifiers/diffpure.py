"""DiffPure: noise the image to t*, and bring it back along the reverse process.

Nie et al., "Diffusion models for adversarial purification", ICML 2022; docs/diffpure.md.
"""

from typing import Literal

import torch
from torch import Tensor

from lustral.diffusion import Denoiser, LinearSchedule, Solver, from_diffusion, to_diffusion
from lustral.noise import NoiseStream
from lustral.purifiers.base import Context, Purified, Purifier


class DiffPure(Purifier):
    """One round of forward noising and reverse diffusion. Nothing is clamped, as in the paper.

    Args:
        denoiser: the diffusion model.
        solver: the reverse step: EulerMaruyama (the paper's VP-SDE), DDIM or Ancestral.
        t_star: the noise level in noising steps out of 1000 (the paper's t* = 0.1 is 100).
        num_steps: reverse steps, evenly spaced; the paper takes one a noising step.
        forward_schedule: "denoiser" noises with the denoiser's own schedule; "discrete" with the linear-1000
            table whatever the denoiser's is, as the published numbers of the VP-SDE variant were made (0.4 % more
            noise is then removed than was added).

    Raises:
        ValueError: if the solver cannot follow the denoiser's schedule, or t_star or num_steps is out of range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        solver: Solver,
        t_star: int = 100,
        num_steps: int = 100,
        forward_schedule: Literal["denoiser", "discrete"] = "denoiser",
    ) -> None:
        super().__init__()
        if forward_schedule not in ("denoiser", "discrete"):
            raise ValueError(f"forward_schedule is {forward_schedule!r}; it may be denoiser or discrete.")
        solver.check(denoiser)
        self.denoiser, self.solver = denoiser.eval().requires_grad_(False), solver
        self.t_star, self.num_steps, self.forward_schedule = t_star, num_steps, forward_schedule
        self._times = denoiser.schedule.grid(t_star, num_steps)
        self._forward = LinearSchedule() if forward_schedule == "discrete" else denoiser.schedule

    def derived(self) -> dict[str, float]:
        """``sigma``: standard deviation of the injected noise in diffusion space, [-1, 1]."""
        return {"sigma": round(float(self._forward.sigma(self._times[0])), 6)}

    def run(self, x: Tensor, context: Context, noise: NoiseStream) -> Purified:
        start, reverse = noise.fork("forward"), noise.fork("reverse")
        shape, dtype = x.shape[1:], x.dtype
        noised = self._forward.perturb(to_diffusion(x), self._times[0], start.normal(shape, dtype=dtype))

        def step(i: int, x_t: Tensor) -> Tensor:
            draw = reverse.normal(shape, step=i, dtype=dtype) if self.solver.random else torch.zeros_like(x_t)
            return self.solver.step(self.denoiser, x_t, self._times[i], self._times[i + 1], draw)

        purified = self.unroll(step, self.num_steps, noised)
        return Purified(from_diffusion(purified)[None], {"noised": from_diffusion(noised).detach()})
