"""Distribution transfer, small: the reverse process is led to images that the victim answers as it did the input."""

from torch import Tensor, nn

from lustral.diffusion import Context, Denoiser, RememberedDenoiser, Solver, from_diffusion
from lustral.diffusion.inner import inner_gradient
from lustral.purifiers import Guidance, RoundPurifier, Step

ANSWER = "answer"
"""The entry of a step's context that holds the victim's logits of the input, (B, K)."""


class SameAnswer(Guidance):
    """Minus the gradient of the squared distance of the victim's logits at the denoised estimate from ``ANSWER``. Its
    derivative is of second order in both networks."""

    def bind(self, classifier: nn.Module) -> None:
        self._victim = classifier

    def __call__(self, step: Step, denoise: RememberedDenoiser) -> Tensor:
        def likeness(x_t: Tensor) -> Tensor:
            logits = self._victim(from_diffusion(denoise(x_t, step.t)))
            return -(logits - step.context[ANSWER]).square().sum(1)

        return inner_gradient(likeness, step.x_t)


class DistributionTransfer(RoundPurifier):
    """Rounds whose steps are x_s + scale * guidance(x_t).

    Args:
        denoiser: the diffusion model.
        solver: the reverse step.
        guidance: what leads.
        t_star: the noise level in steps out of 1000.
        num_steps: reverse steps.
        scale: of the guidance.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        solver: Solver,
        guidance: SameAnswer,
        t_star: float = 100.0,
        num_steps: int = 3,
        scale: float = 0.02,
    ) -> None:
        super().__init__()
        self.prepare_rounds(denoiser, solver, [(t_star, num_steps)])
        self.guidance, self.t_star, self.num_steps, self.scale = guidance, t_star, num_steps, scale

    def bind(self, classifier: nn.Module) -> None:
        super().bind(classifier)
        self.guidance.bind(classifier)

    def follow(self, x: Tensor) -> Context:
        return {ANSWER: self.rows(self.victim, from_diffusion(x))}

    def reverse(self, step: Step) -> Tensor:
        denoise = RememberedDenoiser(self.denoiser)
        direction = self.guidance(step, denoise)  # first: it needs a graph where the solver needs none
        moved = self.solver.step(denoise, step.x_t, step.t, step.s, self.drawn(step))
        return moved + self.scale * direction
