"""What guided rounds share: DDPM's ancestral steps whose mean is moved by a guidance."""

import itertools
from abc import ABC
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lustral.describe import rebuilt
from lustral.diffusion import Ancestral, Context, Denoiser, RememberedDenoiser
from lustral.diffusion.schedules import MAX_TIME
from lustral.noise import NoiseStream
from lustral.purifiers.guidance import REFERENCE, Guidance, Step
from lustral.purifiers.rounds import RoundPurifier
from lustral.ratio import Ratio, parse_ratio

GuidanceGradient = Literal["exact", "constant"]


class GuidedRounds(RoundPurifier, ABC):
    """Rounds whose steps are mean + variance * s_t * guidance + noise, s_t = (sigma / alpha) / m, m = 2 budget / (3
    scale) (Wang et al. 2022, equations 5 to 9).

    Attributes:
        guidance: the direction of ascent; None switches guidance off.
        guidance_gradient: whether the exact gradient differentiates the guidance ("exact"), or takes it for a constant
            ("constant": an approximation of first order, with the very same images).
    """

    solver: Ancestral
    guidance: None | Guidance
    guidance_gradient: GuidanceGradient = "exact"

    def prepare_guided(
        self,
        denoiser: Denoiser,
        solver: Ancestral,
        rounds: Sequence[tuple[float, int]],
        guidance: None | Guidance,
        scale: float,
        budget: Ratio,
        resize_to: int | None = None,
    ) -> None:
        """Check and store the arguments that all subclasses have (see `prepare_rounds`).

        Raises:
            ValueError: if ``scale`` or ``budget`` is not positive, or an argument of `prepare_rounds` is wrong.
        """
        if scale <= 0 or parse_ratio(budget, "budget") <= 0:
            raise ValueError(f"scale = {scale} and budget = {budget} must be positive.")
        self.guidance, self.scale, self.budget = guidance, scale, budget
        self._slowness = 2.0 * parse_ratio(budget, "budget") / (3.0 * scale)  # m
        self.prepare_rounds(denoiser, solver, rounds, resize_to)
        if guidance is not None:
            self.holds, self.offers = guidance.holds, {**type(self).offers, **guidance.offers}
            self._parts = nn.ModuleList(guidance.parts)  # so that they have this purifier's device and runtime

    def bind(self, classifier: nn.Module) -> None:
        super().bind(classifier)
        if self.guidance is not None:
            self.guidance.bind(classifier)

    def prepare(self, x: Tensor, noise: NoiseStream) -> Context:
        guidance = self.guidance
        if guidance is None or not self.holds:
            return {}
        return self.rows(lambda x, noise: guidance.prepare(x, noise, self.unguided), x, noise.fork("reference"))

    def unguided(self, x: Tensor, noise: NoiseStream) -> Tensor:
        """The images (B, C, H, W) that this purifier makes of ``x`` without its guidance."""
        other = rebuilt(self, {"guidance": None})
        other.runtime = self.runtime
        return other.walk(x, None, noise, ()).images[0]

    def derived(self) -> dict[str, float]:
        """Also ``pull``, the strength of MSE guidance: the sum over one round's steps of the factor of (input - x_t).
        Where the variance is learned, it is computed with the largest variance, beta."""
        pixels = torch.Size(self.denoiser.image_shape).numel()
        pull, factor = 0.0, 0.0 if self.guidance is None else self.guidance.pull(pixels)
        if not factor:
            return super().derived()
        for t, s in itertools.pairwise(self.grids[0]):
            _, variance = self.solver.span(self.denoiser.schedule, t, s, self._before(t))
            pull += float(variance * self._strength(t)) * factor
        return {**super().derived(), "pull": round(pull, 6)}

    def follow(self, x: Tensor) -> Context:
        return {} if self.guidance is None else {REFERENCE: x}

    def reverse(self, step: Step) -> Tensor:
        if self.guidance is None:
            return super().reverse(step)
        denoise = RememberedDenoiser(self.denoiser)
        # Without gradients the guidance comes first: it may need a graph of its own, and the solver reuses its network
        # call. With gradients both share one graph, and gradients are summed in the order in which it was built.
        direction = None if torch.is_grad_enabled() else self.guidance(step, denoise)
        with sdpa_kernel(SDPBackend.MATH) if self.guidance.denoises else nullcontext():
            transition = self.solver.transition(denoise, step.x_t, step.t, step.s, self._before(step.t))
        if direction is None:
            with torch.set_grad_enabled(self.guidance_gradient == "exact"):
                direction = self.guidance(step, denoise)
        return transition.draw(self.drawn(step)) + transition.guided(self._strength(step.t)) * direction

    def _strength(self, t: Tensor) -> Tensor:
        """s_t: the gradient of D is multiplied by this and by the variance of the step."""
        return self.denoiser.schedule.noise_ratio(t) / self._slowness

    def _before(self, t: Tensor) -> Tensor:
        """The time at which the preceding step, which led to ``t``, began; used where ``t`` is the last time before the
        clean image. It is the third lowest time of the grid, and at least 2 t (rows on a grid of their own may start
        higher, and a round may have a single step)."""
        doubled = 2.0 * t.double()
        above = self.grids[0][-3].to(t.device) if len(self.grids[0]) > 2 else doubled
        return torch.maximum(doubled, above).clamp_max(MAX_TIME)
