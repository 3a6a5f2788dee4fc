"""Whose answer leads the reverse process: the image at which the victim is asked for y_ref.

The paper (distribution transfer, 2023) says only "reference model output". At the attacked image itself this is the
answer that the attack has chosen, so that is one choice of three; docs/distribution_transfer.md.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lustral.noise import NoiseStream
from lustral.purifiers.base import Purifier
from lustral.purifiers.guidance import Unguided


class ReferenceAnswer(ABC):
    """Chooses the image whose answer is y_ref.

    Attributes:
        parts: the modules that it works with.
    """

    parts: tuple[nn.Module, ...] = ()

    @abstractmethod
    def image(self, x: Tensor, noise: NoiseStream, unguided: Unguided) -> Tensor:
        """The image (B, C, H, W) at which the victim is asked, from the input ``x`` in [0, 1]: row by row.

        ``noise`` is a stream of its own, and ``unguided(x, noise)`` the purifier without its guidance.
        """


class AnswerOfTransformed(ReferenceAnswer):
    """The input after a transformation that adversarial perturbations survive badly: `JPEG`, `BitDepth` or
    `GaussianBlur`, as the paper's motivation has it, or any purifier of one view.

    Where the transformation has no exact gradient (rounding), y_ref is a constant to the exact gradient, which is the
    derivative almost everywhere. An attack on y_ref differentiates a `Variant` of the transformation's ``rounding``.

    Args:
        transform: the transformation.
    """

    def __init__(self, transform: Purifier) -> None:
        self.transform = transform
        self.parts = (transform,)

    def image(self, x: Tensor, noise: NoiseStream, unguided: Unguided) -> Tensor:
        mode = "exact" if "exact" in self.transform.gradient_modes else "detached"
        views = self.transform(x, noise, mode).images
        if len(views) > 1:
            raise ValueError(
                f"{type(self.transform).__name__} makes {len(views)} views of an image, and y_ref is the answer at "
                "one: choose a transform of one view."
            )
        return views[0]


class AnswerOfInput(ReferenceAnswer):
    """The attacked image itself: the paper's words taken literally. It leads to the label that the attack chose."""

    def image(self, x: Tensor, noise: NoiseStream, unguided: Unguided) -> Tensor:
        return x


class AnswerOfUnguided(ReferenceAnswer):
    """What the same purifier makes of the image without guidance, with noise of its own: twice the network calls."""

    def image(self, x: Tensor, noise: NoiseStream, unguided: Unguided) -> Tensor:
        return unguided(x, noise)
