"""Guidance of a reverse step by a direction of ascent at x_t, with GDMP's two (Wang et al. 2022, equations 5 to 9)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

from torch import Tensor, nn

from lustral.diffusion import Context, RememberedDenoiser
from lustral.diffusion.inner import inner_gradient
from lustral.noise import NoiseStream
from lustral.purifiers.similarity import ssim

Reference = Literal["noised", "shared", "clean"]
Unguided = Callable[[Tensor, NoiseStream], Tensor]
"""The purifier without its guidance: images (B, C, H, W) in [0, 1] and B rows of noise to purified images."""
REFERENCE = "reference"
"""The name of the context entry with the purifier's input image, (B, C, H, W) in diffusion space."""


class Step(NamedTuple):
    """One reverse step from t to s, row by row.

    Attributes:
        x_t: (B, C, H, W) in diffusion space.
        t, s: float64, () or (B,), in noising steps out of 1000.
        index: the step's number in its round, the same for every row and batch.
        noise: B rows, already at this round and step.
        context: further tensors with B rows, by name (see `lustral.diffusion.trajectory.Context`).
    """

    x_t: Tensor
    t: Tensor
    s: Tensor
    index: int
    noise: NoiseStream
    context: Context


class Guidance(ABC):
    """The direction in which a reverse step is guided; the purifier scales it.

    Attributes:
        denoises: whether the guidance calls ``denoise``. The network call that it shares with the solver then runs
            attention in its unfused math form, as `inner_gradient` does, whichever of the two calls first.
        holds: the names of what `prepare` finds, which becomes context of the purifier and of every step.
        offers: those of them that are entries of the purifier's trace too, with a sentence each.
        parts: the modules that the guidance works with; the purifier registers them.
    """

    denoises: bool = True
    holds: frozenset[str] = frozenset()
    offers: Mapping[str, str] = {}
    parts: tuple[nn.Module, ...] = ()

    def bind(self, classifier: nn.Module) -> None:  # noqa: B027  (most do not look at it)
        """Show the victim to a guidance that looks at it. Called before any image is purified."""

    def prepare(self, x: Tensor, noise: NoiseStream, unguided: Unguided) -> Context:
        """What images ``x`` (B, C, H, W) in [0, 1] alone decide, by the names in `holds`; differentiable in ``x``."""
        return {}

    def pull(self, pixels: int) -> float:
        """The factor of (input - x_t) in the direction, for images of that many values; 0 if it is no such pull."""
        return 0.0

    @abstractmethod
    def __call__(self, step: Step, denoise: RememberedDenoiser) -> Tensor:
        """The direction of ascent at ``step.x_t``, (B, C, H, W): row by row, and differentiable.

        An inner gradient must be taken with `lustral.diffusion.inner.inner_gradient`. ``denoise(x_t, t)`` is cached
        within the step, so guidance and solver share one network call.
        """


class Likeness(Guidance):
    """Guidance towards the input image.

    Args:
        reference: whether x_t is compared with the input image "noised" to the same level with noise of its own
            (CIFAR-10), noised with the noise of the forward process ("shared"), or "clean" (ImageNet).
        reference_batch: the divisor of the guidance, at least 1. The reference implementation also averages over the
            batch, so its strength depends on the batch size: 100 for its CIFAR-10 numbers; 1 is the paper's formula.
    """

    denoises = False

    def __init__(self, reference: Reference = "noised", reference_batch: int = 100) -> None:
        if reference not in get_args(Reference):
            raise ValueError(f"reference is {reference!r}; it may be {', '.join(get_args(Reference))}.")
        if reference_batch < 1:
            raise ValueError(f"reference_batch is {reference_batch}; it must be at least 1.")
        self.reference: Reference = reference
        self.reference_batch = reference_batch

    def target(self, step: Step, denoise: RememberedDenoiser) -> Tensor:
        """The image with which x_t is compared, (B, C, H, W)."""
        image = step.context[REFERENCE]
        if self.reference == "clean":
            return image
        own = step.noise.at(step=0).fork("forward") if self.reference == "shared" else step.noise.fork("guide")
        return denoise.schedule.perturb(image, step.t, own.normal(image.shape[1:], dtype=image.dtype))


class MSEGuidance(Likeness):
    """The gradient of minus the mean squared error over the pixels of one image, in closed form.

    Args:
        reference: whether x_t is compared with the input image "noised" to the same level with noise of its own
            (CIFAR-10), noised with the noise of the forward process ("shared"), or "clean" (ImageNet).
        reference_batch: the divisor of the guidance, at least 1: 100 for the published CIFAR-10 runs, 1 for the
            paper's formula.
    """

    def __call__(self, step: Step, denoise: RememberedDenoiser) -> Tensor:
        return (self.target(step, denoise) - step.x_t) * self.pull(step.x_t[0].numel())

    def pull(self, pixels: int) -> float:
        return 2.0 / (pixels * self.reference_batch)


class SSIMGuidance(Likeness):
    """The gradient of the structural similarity (`ssim`).

    Args:
        reference: whether x_t is compared with the input image "noised" to the same level with noise of its own
            (CIFAR-10), noised with the noise of the forward process ("shared"), or "clean" (ImageNet).
        reference_batch: the divisor of the guidance, at least 1: 100 for the published CIFAR-10 runs, 1 for the
            paper's formula.
    """

    def __call__(self, step: Step, denoise: RememberedDenoiser) -> Tensor:
        target = self.target(step, denoise)
        return inner_gradient(lambda x_t: ssim(x_t, target) / self.reference_batch, step.x_t)
