"""The base class of training losses of classifiers."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from lustral.noise import NoiseStream


class ClassifierLoss(ABC):
    """A loss that training lowers: cross-entropy on clean images, on adversarial images, at perturbed weights ...

    A loss may call the classifier as often as it needs, and differentiate it with respect to images. It must leave the
    parameters' ``requires_grad`` and ``grad``, and the modes of the layers, as they were (`evaluating` restores modes).
    If it perturbs weights, they stay perturbed for the backward pass, and `restore` resets them.
    """

    @abstractmethod
    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor, noise: NoiseStream) -> Tensor:
        """(B,) losses, with a graph to the classifier's parameters.

        Args:
            classifier: maps (B, C, H, W) images in [0, 1] to (B, K) logits; in training mode.
            x: (B, C, H, W) images in [0, 1].
            y: (B,) int64 labels.
            noise: a stream of B rows, keyed by seed, sample and optimiser step. Every random number comes from a fork
                of it, under a name of the loss's own.
        """

    def restore(self, classifier: nn.Module) -> None:  # noqa: B027  (nothing to undo is the rule, not an omission)
        """Reset the weights that the last call perturbed, from a copy (subtracting would leave rounding errors).

        Called after every backward pass, also for each batch of an accumulated gradient, before the optimiser's step.
        """


@contextmanager
def evaluating(classifier: nn.Module) -> Iterator[None]:
    """Put the layers into eval mode in this context: no dropout, and running statistics that do not change.

    Afterwards each layer has its own mode again: where only the last layer is trained, the others were in eval mode
    before, too.
    """
    training = [module for module in classifier.modules() if module.training]
    classifier.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
