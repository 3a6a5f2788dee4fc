"""GDMP: ancestral sampling that is guided towards the input (Wang et al., "Guided diffusion model for adversarial
purification", 2022). docs/gdmp.md."""

import torch
from torch import Tensor

from lustral.diffusion import Ancestral, Denoiser
from lustral.diffusion.schedules import MAX_TIME
from lustral.diffusion.solvers import Variance
from lustral.purifiers.guidance import Guidance
from lustral.purifiers.guided import GuidedRounds
from lustral.purifiers.rounds import Round
from lustral.purifiers.slots import Layout
from lustral.ratio import Ratio


class GDMP(GuidedRounds):
    """Rounds of DDPM sampling whose mean is pulled towards the input: mean + variance * s_t * grad of D(x_t, input).

    The variance is that of the reverse step (option ``variance``). D is chosen by ``guidance``: minus the mean squared
    error, or the SSIM, over the pixels of one image. s_t = (sigma / alpha) / m with m = 2 ``budget`` / (3 ``scale``)
    (the paper's equations 5 to 9). The estimate of x_0 is clamped to [-1, 1], the purified image to [0, 1].

    Args:
        denoiser: the diffusion model; the paper's is on the table of 1000 levels.
        guidance: MSEGuidance, SSIMGuidance, or any other; None switches guidance off.
        t_star: the noise level of a round in noising steps out of 1000.
        num_steps: reverse steps per round.
        num_rounds: number of rounds; the input image guides all of them.
        scale: of the guidance; 6e4 (mse) and 7e4 (ssim) for the published CIFAR-10 runs.
        budget: the perturbation size in the paper's formula for s_t; it belongs to the purifier and is independent of
            the attacker's eps ("8/255").
        noise_offset: additional noising steps before each round; 1 in the reference implementation, which noises one
            step more than it removes.
        respacing: take the steps from this many levels spread over the 1000, as guided-diffusion does (250 for
            ImageNet, of which the lowest 45 reach up to t = 178); None spreads them over t_star.
        variance: of a reverse step, and in its guidance term: "large" (beta, the published CIFAR-10 runs), "learned"
            (ImageNet) or "small" (beta tilde). The step to the clean image adds no noise, but it is guided: with
            "large" its variance is beta tilde of the preceding step, as in the original code, with "small" 0.
        layout: how rows of different noise levels share steps (`SSNI`): "clock" or "own" (see `slots`).
        resize_to: resize images to this side in pixels, the denoiser's (256 for ImageNet images of 224), and back
            after purification; None keeps their size.

    Raises:
        ValueError: if an option is out of its range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        guidance: None | Guidance,
        t_star: int = 36,
        num_steps: int = 36,
        num_rounds: int = 4,
        scale: float = 6e4,
        budget: Ratio = "8/255",
        noise_offset: int = 0,
        respacing: None | int = None,
        variance: Variance = "large",
        layout: Layout = "clock",
        resize_to: None | int = None,
    ) -> None:
        super().__init__()
        if num_rounds < 1:
            raise ValueError(f"num_rounds is {num_rounds}; it must be at least 1.")
        if noise_offset < 0:
            raise ValueError(f"noise_offset is {noise_offset}; it cannot be negative.")
        if respacing is not None and not num_steps <= respacing <= MAX_TIME:
            raise ValueError(f"respacing is {respacing}; it lies in num_steps = {num_steps} .. {MAX_TIME}.")
        self.t_star, self.num_steps, self.num_rounds = t_star, num_steps, num_rounds
        self.noise_offset, self.respacing, self.layout = noise_offset, respacing, layout
        self.variance = variance
        solver, rounds = Ancestral(variance, clip_denoised=True), [(t_star, num_steps)] * num_rounds
        self.prepare_guided(denoiser, solver, rounds, guidance, scale, budget, resize_to)

    def grid(self, of: Round) -> Tensor:
        if self.respacing is None:
            return super().grid(of)
        # guided-diffusion's "250": every (999 / 249)th index, rounded; index i is t = i + 1.
        indices = torch.arange(of.num_steps, dtype=torch.float64) * ((MAX_TIME - 1) / (self.respacing - 1))
        return torch.cat((indices.round().flip(0) + 1, torch.zeros(1, dtype=torch.float64)))

    def noised_at(self, t: Tensor) -> Tensor:
        return (t + self.noise_offset).clamp_max(MAX_TIME)

    def finish(self, x: Tensor) -> Tensor:
        return x.clamp(0.0, 1.0)
