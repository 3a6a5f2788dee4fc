"""DiffPure: noise the image to t*, and denoise it with the reverse process.

Nie et al., "Diffusion models for adversarial purification", ICML 2022; docs/diffpure.md.
"""

from typing import Literal

from lustral.diffusion import Denoiser, LinearSchedule, Solver
from lustral.purifiers.rounds import RoundPurifier
from lustral.purifiers.slots import Layout


class DiffPure(RoundPurifier):
    """One round of forward noising and reverse diffusion. Nothing is clamped, as in the paper.

    Args:
        denoiser: the diffusion model.
        solver: the reverse step: EulerMaruyama (the paper's VP-SDE), FlowEuler (its ODE), Ancestral (its DDPM) ...
        t_star: the noise level in noising steps out of 1000 (the paper's t* = 0.1 is 100).
        num_steps: reverse steps, evenly spaced; the paper takes as many as noising steps.
        forward_schedule: "denoiser" noises with the denoiser's own schedule; "discrete" with the linear table of 1000
            levels, whatever the denoiser's schedule, as for the published numbers of the VP-SDE variant (0.4 % more
            noise is then removed than was added).
        layout: how rows of different noise levels share steps (`SSNI`): "clock" or "own" (see `slots`).
        resize_to: resize images to this side in pixels, the denoiser's (256 for ImageNet images of 224), and back
            after purification; None keeps their size.

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
        layout: Layout = "clock",
        resize_to: None | int = None,
    ) -> None:
        super().__init__()
        if forward_schedule not in ("denoiser", "discrete"):
            raise ValueError(f"forward_schedule is {forward_schedule!r}; it may be denoiser or discrete.")
        self.prepare_rounds(denoiser, solver, [(t_star, num_steps)], resize_to)
        self.t_star, self.num_steps, self.forward_schedule, self.layout = t_star, num_steps, forward_schedule, layout
        if forward_schedule == "discrete":
            self.noising = LinearSchedule()
