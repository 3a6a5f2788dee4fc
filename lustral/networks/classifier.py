"""The classifier convention: [0, 1] images in, logits out, normalised inside."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Classifier(nn.Module, ABC):
    """Logits of [0, 1] images. Subclasses give `logits` of normalised images.

    Args:
        num_classes: how many classes.
        image_shape: (C, H, W) of the images.
        mean: of each channel (or one for all), subtracted from the [0, 1] image.
        std: of each channel (or one for all), the difference is divided by.

    Attributes:
        weights: the file its weights came from; None means that they are random.
    """

    weights: None | str

    def __init__(
        self, num_classes: int, image_shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}; a classifier needs at least 2.")
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, image_shape[0]):
                raise ValueError(f"{name} has {len(values)} values for {image_shape[0]} channels; give 1 or one each.")
        if min(std) <= 0:
            raise ValueError(f"std is {list(std)}; every value must be positive.")
        self.num_classes, self.image_shape = num_classes, image_shape
        self.mean, self.std = list(mean), list(std)
        # Not part of the state: the architecture holds them.
        self.register_buffer("_mean", torch.tensor(self.mean)[None, :, None, None], persistent=False)
        self.register_buffer("_std", torch.tensor(self.std)[None, :, None, None], persistent=False)

    @property
    def last_layer(self) -> nn.Module:
        """The layer that gives the logits: the last linear one with an output a class. Head-only training moves it
        alone, and `features` are what it is given.

        Raises:
            ValueError: if there is none.
        """
        layers = [m for m in self.modules() if isinstance(m, nn.Linear) and m.out_features == self.num_classes]
        if not layers:
            raise ValueError(
                f"{type(self).__name__} has no linear layer of {self.num_classes} outputs, so its last layer and its "
                "features are not known: choose a classifier that ends in one."
            )
        return layers[-1]

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """(B, num_classes) from normalised images (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, num_classes) logits of images (B, C, H, W) in [0, 1]."""
        return self.logits((x - self.get_buffer("_mean")) / self.get_buffer("_std"))

    def features(self, x: Tensor) -> Tensor:
        """(B, D) penultimate features of images (B, C, H, W) in [0, 1]: what `last_layer` is given."""
        return self.features_and_logits(x)[0]

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Penultimate features (B, D) and logits (B, num_classes) of one call."""
        found: list[Tensor] = []
        # Read where they pass, so that a subclass writes its forward pass once and in one piece.
        hook = self.last_layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        try:
            logits = self(x)
        finally:
            hook.remove()
        return found[-1].flatten(1), logits
