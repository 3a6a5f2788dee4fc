"""What pulls a reverse step: a direction of ascent at x_t, and GDMP's two (Wang et al. 2022, equations 5 to 9)."""

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from lustral.diffusion import Context, RememberedDenoiser
from lustral.diffusion.inner import inner_gradient
from lustral.noise import NoiseStream
from lustral.purifiers.similarity import ssim

Reference = Literal["noised", "clean"]
REFERENCE = "reference"
"""The entry of a step's context that holds the image which came in, (B, C, H, W) in diffusion space."""


class Step(NamedTuple):
    """One reverse step from t to s, row by row.

    Attributes:
        x_t: (B, C, H, W) in diffusion space.
        t, s: float64, () or (B,), in noising steps out of 1000.
        index: the step's number in its round, the same for every row and batch.
        noise: B rows, already at this round and step.
        context: what else belongs to the images, by name.
    """

    x_t: Tensor
    t: Tensor
    s: Tensor
    index: int
    noise: NoiseStream
    context: Context


class Guidance(ABC):
    """Subclasses give the direction; how far it goes is for the purifier to say.

    Attributes:
        denoises: whether it calls ``denoise``: the one call that it shares with the solver then runs attention in its
            plain mathematical form, as `inner_gradient` does, whoever of the two asks first.
    """

    denoises: bool = True

    @abstractmethod
    def __call__(self, step: Step, denoise: RememberedDenoiser) -> Tensor:
        """(B, C, H, W), the direction of ascent at ``step.x_t``: of each image by itself, and differentiable. A
        gradient is taken by `lustral.diffusion.inner.inner_gradient`. ``denoise(x_t, t)`` is remembered within the
        step, so that guidance and solver share one network call."""


class _Likeness(Guidance):
    """Towards the image that came in.

    Args:
        reference: whether x_t is compared with that image "noised" to the same level (CIFAR-10) or "clean" (ImageNet).
        reference_batch: what the guidance is divided by. The reference implementation takes the mean over the batch
            too, so its strength fell with the batch size: 100 is how its CIFAR-10 numbers were made; 1 is the formula.
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
        """What x_t is compared with."""
        image = step.context[REFERENCE]
        if self.reference == "clean":
            return image
        noise = step.noise.fork("guide").normal(image.shape[1:], dtype=image.dtype)
        return denoise.schedule.perturb(image, step.t, noise)


class MSEGuidance(_Likeness):
    """The gradient of minus the mean squared error over the pixels of one image, in closed form."""

    def __call__(self, step: Step, denoise: RememberedDenoiser) -> Tensor:
        return (self.target(step, denoise) - step.x_t) * (2.0 / (step.x_t[0].numel() * self.reference_batch))


class SSIMGuidance(_Likeness):
    """The gradient of the structural similarity."""

    def __call__(self, step: Step, denoise: RememberedDenoiser) -> Tensor:
        target = self.target(step, denoise)
        return inner_gradient(lambda x_t: ssim(x_t, target) / self.reference_batch, step.x_t)
