"""How good are generated images? What a classifier sees in them, beside what it sees in real ones.

A classifier's confidence does not tell: it is above 0.9 on most noise. The distribution of its features does.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lustral.metrics.frechet import FeatureMoments, frechet_distance
from lustral.networks import Classifier


class ImageStatistics:
    """Features and predicted classes of a set of images, gathered batch by batch.

    Distances are in units of the classifier's features, so they mean something beside other distances under the same
    classifier only: divide by the one between two sets of real images. For a network that everybody uses, give
    an Inception v3 (`TimmClassifier("inception_v3", image_size=299, weights=FILE)`, with ``resize``). Its weights are
    never downloaded, and they are not those of the published FIDs, a port that exists in ``torch-fidelity`` only.

    Args:
        classifier: whose features; put into evaluation mode, on the device where images will be.
        resize: bring images to the classifier's size (bilinear, antialiased) and grey ones to its channels; else
            other images are refused.

    Attributes:
        moments: of the features.
        class_counts: (K,) int64, images that the classifier gives to each class.
    """

    def __init__(self, classifier: Classifier, resize: bool = False) -> None:
        self.classifier, self.resize = classifier.eval(), resize
        device = classifier.get_buffer("_mean").device
        blank = torch.zeros(1, *classifier.image_shape, device=device)
        with torch.no_grad():
            num_features = classifier.features(blank).shape[1]
        self.moments = FeatureMoments(num_features, device)
        self.class_counts = torch.zeros(classifier.num_classes, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, images: Tensor) -> None:
        """Add images, (B, C, H, W) in [0, 1]."""
        features, logits = self.classifier.features_and_logits(self._fit(images))
        self.moments.update(features)
        self.class_counts += torch.bincount(logits.argmax(1), minlength=len(self.class_counts))

    def gather(self, total: Callable[[Tensor], Tensor]) -> None:
        """Put in the sums over all processes; ``total`` sums a tensor over them."""
        self.moments.sums, self.class_counts = total(self.moments.sums), total(self.class_counts)

    def frechet(self, other: "ImageStatistics") -> float:
        """The Frechet distance to the features of another set of images."""
        return frechet_distance(*self.moments.gaussian(), *other.moments.gaussian())

    def class_shares(self) -> Tensor:
        """(K,) share of the images that the classifier gives to each class, float64."""
        return self.class_counts.double() / max(1, self.moments.count)

    def _fit(self, images: Tensor) -> Tensor:
        shape = self.classifier.image_shape
        if images.shape[1:] == shape:
            return images
        if not self.resize or images.shape[1] not in (1, shape[0]):
            raise ValueError(
                f"The classifier takes images of shape {shape}, but these are {tuple(images.shape[1:])} (C, H, W): "
                "choose a classifier for these images, or set resize to true (grey images become colour ones)."
            )
        images = F.interpolate(images, shape[1:], mode="bilinear", antialias=True).clamp(0.0, 1.0)
        return images.expand(-1, shape[0], -1, -1)
