"""The seam of what a classifier is trained for."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from lustral.noise import NoiseStream


class ClassifierLoss(ABC):
    """What is descended: cross-entropy on clean images, a robust one on attacked images, on moved weights ...

    A loss may ask the classifier as often as it needs, and differentiate it by its images. It leaves parameters'
    ``requires_grad``, their ``grad`` and the modes of the layers as they were (`evaluating` gives the modes back).
    Weights that it moves stay moved until the gradient has been taken there; `restore` brings them back.
    """

    @abstractmethod
    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor, noise: NoiseStream) -> Tensor:
        """(B,) losses, with a graph to the classifier's parameters.

        Args:
            classifier: (B, C, H, W) images in [0, 1] to (B, K) logits, in the mode of the training.
            x: (B, C, H, W) images in [0, 1].
            y: (B,) int64 labels.
            noise: the rows' stream, keyed by seed, sample and optimiser's step. Every draw comes from a fork of it,
                with a name of the loss's own.
        """

    def restore(self, classifier: nn.Module) -> None:  # noqa: B027  (nothing to undo is the rule, not an omission)
        """Undo what the last call moved in the weights. Called after every backward pass, and so before the optimiser's
        step, for each batch of an accumulated gradient too. Weights are copied back: adding and subtracting would
        leave rounding errors behind."""


@contextmanager
def evaluating(classifier: nn.Module) -> Iterator[None]:
    """Layers in evaluation mode inside: no dropout, stored statistics, which no query changes. Each has its own mode
    back afterwards; where the last layer alone is trained, the others are in evaluation mode all the time."""
    training = [module for module in classifier.modules() if module.training]
    classifier.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
