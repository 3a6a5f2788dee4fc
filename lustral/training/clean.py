"""Cross-entropy on clean images, with or without mixup."""

import torch.nn.functional as F
from torch import Tensor, nn

from lustral.noise import NoiseStream
from lustral.training.base import ClassifierLoss
from lustral.training.mixup import mixup_draws


class CleanCrossEntropy(ClassifierLoss):
    """Cross-entropy on clean images, or on mixtures of two (mixup: Zhang et al. 2018). This is a training loss; attacks
    use `lustral.attacks.CrossEntropy`.

    Args:
        label_smoothing: probability mass that the target spreads evenly over all classes, in [0, 1).
        mixup_alpha: alpha of the Beta(alpha, alpha) distribution of an image's share in its mixture; 0 is no mixup.
            Shares are keyed by sample and step, partners by the samples of the batch and step.

    Raises:
        ValueError: if an option is out of its range.
    """

    def __init__(self, label_smoothing: float = 0.0, mixup_alpha: float = 0.0) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}; it must lie in [0, 1).")
        if not mixup_alpha >= 0:
            raise ValueError(f"mixup_alpha is {mixup_alpha}; it must be positive, or 0 for no mixup.")
        self.label_smoothing, self.mixup_alpha = label_smoothing, mixup_alpha

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor, noise: NoiseStream) -> Tensor:
        if not self.mixup_alpha:
            return self._cross_entropy(classifier(x), y)
        share, partner = mixup_draws(noise, self.mixup_alpha)
        own = share.to(x.dtype)
        weight = own[:, None, None, None]
        logits = classifier(weight * x + (1 - weight) * x[partner])
        return own * self._cross_entropy(logits, y) + (1 - own) * self._cross_entropy(logits, y[partner])

    def _cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, label_smoothing=self.label_smoothing, reduction="none")
