"""The quality of generated images: a classifier's features of them, compared with its features of real images.

A classifier's confidence says nothing about quality, as it is above 0.9 on most noise; the distribution of its features
does.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lustral.metrics.frechet import FeatureMoments, frechet_distance
from lustral.networks import Classifier


class ImageStatistics:
    """Features and predicted classes of a set of images, accumulated batch by batch.

    Distances are in units of the classifier's features, so they can be compared only under the same classifier: divide
    by the distance between two sets of real images. For a common reference network, use an Inception v3
    (`TimmClassifier("inception_v3", image_size=299, weights=FILE)`, with ``resize``). Its weights are never downloaded,
    and they are not those of published FIDs, of which a port exists only in ``torch-fidelity``.

    Args:
        classifier: computes the features; it is put into eval mode, and images must be on its device.
        resize: resize images to the classifier's size (bilinear, antialiased), and repeat the channel of grey images;
            otherwise images of another shape are refused.

    Attributes:
        moments: moments of the features.
        class_counts: (K,) int64, the number of images that the classifier assigns to each class.
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
        """Add images, (B, C, H, W) in [0, 1].

        Raises:
            ValueError: if the classifier takes images of another shape, and they cannot be resized.
        """
        features, logits = self.classifier.features_and_logits(self._fit(images))
        self.moments.update(features)
        self.class_counts += torch.bincount(logits.argmax(1), minlength=len(self.class_counts))

    def gather(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replace the statistics by their sums over all processes; ``total`` sums a tensor over processes."""
        self.moments.sums, self.class_counts = total(self.moments.sums), total(self.class_counts)

    def frechet(self, other: "ImageStatistics") -> float:
        """The Frechet distance to the features of another set of images."""
        return frechet_distance(*self.moments.gaussian(), *other.moments.gaussian())

    def class_shares(self) -> Tensor:
        """(K,) float64, the share of the images that the classifier assigns to each class."""
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
