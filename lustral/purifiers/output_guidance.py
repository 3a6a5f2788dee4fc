"""Guidance by the victim's answer (distribution transfer, 2023, equation 11), and its sum with a distance."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal, get_args

from torch import Tensor, nn

from lustral.diffusion import Context, RememberedDenoiser, from_diffusion
from lustral.diffusion.inner import inner_gradient
from lustral.noise import NoiseStream
from lustral.purifiers.answers import ReferenceAnswer
from lustral.purifiers.divergences import DIVERGENCES, Divergence, entropy
from lustral.purifiers.guidance import Guidance, Step, Unguided
from lustral.purifiers.sizes import resized

LookAt = Literal["posterior_mean", "x_t"]
ANSWER = "reference_logits"
"""The name of the context entry with y_ref, the victim's logits (B, K)."""


class _AnswerGuidance(Guidance):
    """Descends a function of the victim's answer at the state of the reverse process.

    Args:
        look_at: u in the paper's f(u(x_t)): "posterior_mean" asks the victim at E[x_0 | x_t], through the diffusion
            model, whose call is the solver's; "x_t" at the noisy image itself.
        clip: clamp the image to [0, 1] before the victim sees it; its gradient is zero where it saturates.

    Raises:
        ValueError: if ``look_at`` is neither.
    """

    def __init__(self, look_at: LookAt = "posterior_mean", clip: bool = True) -> None:
        if look_at not in get_args(LookAt):
            raise ValueError(f"look_at is {look_at!r}; it may be {', '.join(get_args(LookAt))}.")
        self.look_at: LookAt = look_at
        self.clip = clip
        self.denoises = look_at == "posterior_mean"
        self._victim: None | nn.Module = None

    @property
    def victim(self) -> nn.Module:
        """The classifier set by `bind`.

        Raises:
            ValueError: if none was bound.
        """
        if self._victim is None:
            raise ValueError(
                f"{type(self).__name__} looks at the classifier that is defended, and was shown none: put the purifier "
                "into a Defence, or bind one."
            )
        return self._victim

    def bind(self, classifier: nn.Module) -> None:
        self._victim = classifier

    def answer(self, image: Tensor) -> Tensor:
        """The victim's logits (B, K) at images (B, C, H, W) in [0, 1], at its own size."""
        shape = getattr(self.victim, "image_shape", image.shape)
        return self.victim(resized(image, shape[-1]))

    @abstractmethod
    def distance(self, logits: Tensor, context: Context) -> Tensor:
        """(B,) what is descended, of logits (B, K)."""

    def __call__(self, step: Step, denoise: RememberedDenoiser) -> Tensor:
        def likeness(x_t: Tensor) -> Tensor:
            image = from_diffusion(denoise(x_t, step.t) if self.denoises else x_t)
            return -self.distance(self.answer(image.clamp(0.0, 1.0) if self.clip else image), step.context)

        return inner_gradient(likeness, step.x_t)


class OutputGuidance(_AnswerGuidance):
    """Minus the gradient of D_f(f(u(x_t)), y_ref), with y_ref the victim's answer at another image. Its derivative is
    of second order in the victim and, with the posterior mean, in the diffusion model.

    Args:
        reference: whose answer y_ref is: AnswerOfTransformed, AnswerOfInput, AnswerOfUnguided.
        divergence: D_f: "kl", "cross_entropy" with the class that y_ref chooses, or "cosine" of the logits.
        look_at: u: "posterior_mean" asks the victim at E[x_0 | x_t], "x_t" at the noisy image itself.
        clip: clamp the image to [0, 1] before the victim sees it; its gradient is zero where it saturates.

    Raises:
        ValueError: if ``divergence`` or ``look_at`` is none of these.
    """

    holds = frozenset({ANSWER})
    offers: Mapping[str, str] = {
        ANSWER: "(B, K) y_ref, the logits that lead the reverse process; differentiable where their image is"
    }

    def __init__(
        self,
        reference: ReferenceAnswer,
        divergence: Divergence = "kl",
        look_at: LookAt = "posterior_mean",
        clip: bool = True,
    ) -> None:
        super().__init__(look_at, clip)
        if divergence not in DIVERGENCES:
            raise ValueError(f"divergence is {divergence!r}; it may be {', '.join(DIVERGENCES)}.")
        self.reference, self.parts = reference, reference.parts
        self.divergence: Divergence = divergence

    def prepare(self, x: Tensor, noise: NoiseStream, unguided: Unguided) -> Context:
        return {ANSWER: self.answer(self.reference.image(x, noise, unguided))}

    def distance(self, logits: Tensor, context: Context) -> Tensor:
        return DIVERGENCES[self.divergence](logits, context[ANSWER])


class EntropyGuidance(_AnswerGuidance):
    """Minus the gradient of the entropy of f(u(x_t)): towards images that the victim is sure of. There is no y_ref.

    Args:
        look_at: u: "posterior_mean" asks the victim at E[x_0 | x_t], "x_t" at the noisy image itself.
        clip: clamp the image to [0, 1] before the victim sees it; its gradient is zero where it saturates.

    Raises:
        ValueError: if ``look_at`` is neither.
    """

    def distance(self, logits: Tensor, context: Context) -> Tensor:
        return entropy(logits)


class JointGuidance(Guidance):
    """``output_weight`` * output + ``distance_weight`` * distance: the paper's equation 11, whose lambda is
    ``output_weight``. The first part brings the victim's knowledge of the classes, the second keeps the image.

    Args:
        output: OutputGuidance, EntropyGuidance, or any other.
        distance: MSEGuidance, SSIMGuidance, or any other.
        output_weight: lambda, not negative.
        distance_weight: of the distance, not negative.

    Raises:
        ValueError: if a weight is negative or not finite, or both parts prepare an entry of the same name.
    """

    def __init__(
        self, output: Guidance, distance: Guidance, output_weight: float = 1.0, distance_weight: float = 1.0
    ) -> None:
        for name, weight in (("output_weight", output_weight), ("distance_weight", distance_weight)):
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} is {weight}; it must be finite and not negative.")
        if both := output.holds & distance.holds:
            raise ValueError(f"Both parts of a guidance prepare {', '.join(sorted(both))}: change one of them.")
        self.output, self.distance = output, distance
        self.output_weight, self.distance_weight = output_weight, distance_weight
        self.denoises = output.denoises or distance.denoises
        self.holds, self.offers = output.holds | distance.holds, {**output.offers, **distance.offers}
        self.parts = (*output.parts, *distance.parts)

    def bind(self, classifier: nn.Module) -> None:
        self.output.bind(classifier)
        self.distance.bind(classifier)

    def prepare(self, x: Tensor, noise: NoiseStream, unguided: Unguided) -> Context:
        return {**self.output.prepare(x, noise, unguided), **self.distance.prepare(x, noise, unguided)}

    def pull(self, pixels: int) -> float:
        return self.output_weight * self.output.pull(pixels) + self.distance_weight * self.distance.pull(pixels)

    def __call__(self, step: Step, denoise: RememberedDenoiser) -> Tensor:
        output = self.output_weight * self.output(step, denoise)
        return output + self.distance_weight * self.distance(step, denoise)
