"""Feature vectors of images: of a classifier's penultimate layer, and of a convolutional network without labels."""

from torch import Tensor, nn

from lustral.networks.builders import announced
from lustral.networks.classifier import Classifier
from lustral.networks.weights import load_into


class Penultimate(nn.Module):
    """The penultimate features of a classifier as a module (use as a ``class_path``).

    Args:
        classifier: whose features; it ends in a linear layer.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        assert classifier.last_layer is not None  # refused by `last_layer` itself, in a sentence
        self.classifier = classifier

    @property
    def weights(self) -> str | None:
        """The file that the classifier's weights are from; None: they are random."""
        return self.classifier.weights

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return self.classifier.image_shape

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) features of images (B, C, H, W) in [0, 1]."""
        return self.classifier.features(x)


@announced
class ConvFeatures(nn.Module):
    """The network of deep kernels: convolutions of stride 2 with LeakyReLU 0.2, then a linear layer.

    Liu et al. 2020 use widths 16, 32, 64, 128 and 300 features for CIFAR-10 images of 64 pixels, with batch
    normalisation after all but the first convolution (its epsilon 0.8); Zhang et al. 2023 widths 16, 32 and 300
    features for expected perturbation scores.

    Args:
        channels: of an image.
        image_size: height and width in pixels.
        widths: channels after each convolution; each halves the image.
        num_features: D.
        batch_norm: normalise after all but the first convolution. Batch statistics are used while training only.
        weights: a file written by `save_network`; None leaves the weights random.

    Raises:
        ValueError: if nothing is left of an image.
    """

    def __init__(
        self,
        channels: int = 3,
        image_size: int = 32,
        widths: tuple[int, ...] | list[int] = (16, 32, 64, 128),
        num_features: int = 300,
        batch_norm: bool = True,
        weights: None | str = None,
    ) -> None:
        super().__init__()
        if not widths or image_size < 2 ** len(widths):
            raise ValueError(
                f"widths are {list(widths)}, and each halves an image of {image_size} pixels: give between 1 and "
                f"{image_size.bit_length() - 1}."
            )
        self.channels, self.image_size, self.widths = channels, image_size, list(widths)
        self.num_features, self.batch_norm, self.weights = num_features, batch_norm, weights
        self.image_shape = (channels, image_size, image_size)
        layers: list[nn.Module] = []
        size, before = image_size, channels
        for number, width in enumerate(widths):
            layers += [nn.Conv2d(before, width, 3, 2, 1), nn.LeakyReLU(0.2)]
            if batch_norm and number:
                layers.append(nn.BatchNorm2d(width, 0.8))
            size, before = -(-size // 2), width
        self.stages = nn.Sequential(*layers)
        self.head = nn.Linear(before * size * size, num_features)
        load_into(self, weights)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) features of images (B, C, H, W) in [0, 1]."""
        return self.head(self.stages(x).flatten(1))
