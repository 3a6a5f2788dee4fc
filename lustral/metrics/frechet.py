"""How good are generated images? The Frechet distance of their features to those of real images.

A classifier's confidence does not tell: it is above 0.9 on most noise. The distribution of its features does.

Dowson and Landau, "The Frechet distance between multivariate normal distributions", 1982; as a quality of generated
images: Heusel et al., "GANs trained by a two time-scale update rule", NeurIPS 2017 (equation 6).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from lustral.networks import Classifier


class FrechetDistance(FrechetInceptionDistance):
    """The Frechet distance between Gaussians fitted to a classifier's features of real and of generated images, and
    the classes that it sees in the generated ones. `reset` forgets the generated ones only.

    Distances are in units of the classifier's features, so they mean something beside other distances under the same
    classifier only: divide by the one between two sets of real images. For a network that everybody uses, give
    an Inception v3 (`TimmClassifier("inception_v3", image_size=299, weights=FILE)`, with ``resize``). Its weights are
    never downloaded, and they are not those of the published FIDs, a port that exists in ``torch-fidelity`` only.

    Args:
        classifier: whose features; put into evaluation mode. It moves with the metric.
        resize: bring images to the classifier's size (bilinear, antialiased) and grey ones to its channels; else
            other images are refused.

    Attributes:
        class_counts: (K,) int64, generated images that the classifier gives to each class.

    Raises:
        ValueError: if the classifier does not end in a linear layer.
    """

    # Sums of features and of their outer products in float64, their exchange between processes and the distance are
    # torchmetrics', which holds to the closed forms in tests/lustral/test_frechet.py. With fewer images than features
    # its eigenvalues of a singular product cost up to 1e-7 of the trace of a covariance (512 features of 200 images),
    # to either side: a distance of equal laws may come out as -1e-5. Few samples make a distance wrong by far more.

    class_counts: Tensor

    def __init__(self, classifier: Classifier, resize: bool = False) -> None:
        num_features: int = classifier.last_layer.in_features  # type: ignore[assignment]
        # The base class is given features for images: one call of the classifier gives the classes too.
        super().__init__(nn.Flatten(), reset_real_features=False, normalize=True, input_img_size=(1, 1, num_features))
        self.classifier, self.resize = classifier.eval(), resize
        counts = torch.zeros(classifier.num_classes, dtype=torch.int64)
        self.add_state("class_counts", counts, dist_reduce_fx="sum")
        self.to(classifier.get_buffer("_mean").device)

    def update(self, images: Tensor, real: bool) -> None:
        """Add images, (B, C, H, W) in [0, 1].

        Raises:
            ValueError: if they are none of the classifier's and may not be resized.
        """
        features, logits = self.classifier.features_and_logits(self._fit(images))
        super().update(features.double(), real)  # the distance comes out as precise as what was last given
        if not real:
            self.class_counts += torch.bincount(logits.argmax(1), minlength=len(self.class_counts))

    def class_shares(self) -> Tensor:
        """(K,) share of the generated images, over all processes, that the classifier gives to each class, float64."""
        with self.sync_context():
            return self.class_counts.double() / self.class_counts.sum()

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
