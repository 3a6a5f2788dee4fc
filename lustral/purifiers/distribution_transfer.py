"""Distribution transfer: ancestral sampling that the victim's answer guides ("Adversarial defense based on distribution
transfer", 2023). docs/distribution_transfer.md says what the paper leaves open, and what is chosen here."""

from typing import Literal, get_args

import torch
from torch import Tensor

from lustral.diffusion import Ancestral, CosineSchedule, Denoiser, LinearSchedule
from lustral.diffusion.solvers import Variance
from lustral.purifiers.guidance import Guidance
from lustral.purifiers.guided import GuidanceGradient, GuidedRounds
from lustral.purifiers.slots import Layout
from lustral.ratio import Ratio

LevelSchedule = Literal["cosine", "linear", "denoiser"]


class DistributionTransfer(GuidedRounds):
    """Noises the image to t*, and samples back with mean - s_t * variance * grad [lambda D_f(f(u(x_t)), y_ref) +
    D(x_t, x)] (equations 8 to 11; Dhariwal and Nichol 2021, algorithm 1).

    The bracket is ``guidance``, and s_t is GDMP's, (sigma / alpha) / m with m = 2 ``budget`` / (3 ``scale``): the paper
    gives neither. Nor does it say on which schedule its 470 steps count. On the linear one of 1000 levels they would
    leave nothing of a CIFAR-10 image (sigma / alpha 2.9), on improved diffusion's cosine one of 4000 they are sigma /
    alpha 0.198, and so they are read here by default: t* = 117.5 of 1000.

    Args:
        denoiser: the diffusion model, on any schedule.
        guidance: JointGuidance, OutputGuidance, or any other; None for the unguided process.
        t_star: the noise level in noising steps out of 1000 of ``level_schedule``.
        level_schedule: on which schedule t_star counts: "cosine" (level k of 4000 is t = k / 4), "linear" (DDPM's
            1000), or "denoiser". The denoiser starts at its own time of that sigma / alpha (on a table: the nearest).
        num_steps: reverse steps, evenly spaced over the denoiser's own levels; fewer than all of them are respaced.
        scale: s, positive.
        budget: the perturbation size in s_t; it belongs to the purifier and is independent of the attacker's eps
            ("8/255").
        variance: of a reverse step, and in its guidance term: "large" (beta), "small" (beta tilde) or "learned".
        clip: clamp the estimate of x_0 to [-1, 1] in every step, and the purified image to [0, 1].
        guidance_gradient: "exact"; "constant" takes the guidance for a constant in the gradient. It changes no image: a
            first-order approximation for attacks to differentiate, through a `Variant`.
        layout: how rows of different noise levels share steps (`SSNI`): "clock" or "own" (see `slots`).
        resize_to: resize images to this side in pixels, the denoiser's, and back after purification; None keeps it.

    Raises:
        ValueError: if an option is out of its range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        guidance: None | Guidance,
        t_star: float = 117.5,
        level_schedule: LevelSchedule = "cosine",
        num_steps: int = 470,
        scale: float = 1000.0,
        budget: Ratio = "8/255",
        variance: Variance = "large",
        clip: bool = True,
        guidance_gradient: GuidanceGradient = "exact",
        layout: Layout = "clock",
        resize_to: None | int = None,
    ) -> None:
        super().__init__()
        if level_schedule not in get_args(LevelSchedule):
            raise ValueError(f"level_schedule is {level_schedule!r}; it may be {', '.join(get_args(LevelSchedule))}.")
        if guidance_gradient not in get_args(GuidanceGradient):
            raise ValueError(f"guidance_gradient is {guidance_gradient!r}; it may be exact or constant.")
        self.t_star, self.level_schedule, self.num_steps, self.clip = t_star, level_schedule, num_steps, clip
        self.variance, self.guidance_gradient, self.layout = variance, guidance_gradient, layout
        solver, rounds = Ancestral(variance, clip), [(self._own_time(denoiser), num_steps)]
        self.prepare_guided(denoiser, solver, rounds, guidance, scale, budget, resize_to)

    def finish(self, x: Tensor) -> Tensor:
        return x.clamp(0.0, 1.0) if self.clip else x

    def _own_time(self, denoiser: Denoiser) -> float:
        """The denoiser's time at the sigma / alpha of t_star on its schedule."""
        if self.level_schedule == "denoiser":
            return float(self.t_star)
        schedule = CosineSchedule() if self.level_schedule == "cosine" else LinearSchedule()
        if not 1 <= self.t_star <= 1000:
            raise ValueError(f"t_star is {self.t_star}; it counts noising steps and lies in 1..1000.")
        at = torch.tensor(self.t_star, dtype=torch.float64)
        return float(denoiser.schedule.time(schedule.noise_ratio(at)))
