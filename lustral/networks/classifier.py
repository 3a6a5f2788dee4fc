"""The classifier convention: images in [0, 1] in, logits out, normalisation inside."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Stage(NamedTuple):
    """Where a named feature map is computed in a network.

    Args:
        module: called once in a forward pass; its output (B, ...) is the map.
        then: a function that is applied to the output and is no module itself, such as an activation.
    """

    module: nn.Module
    then: None | Callable[[Tensor], Tensor] = None


class Classifier(nn.Module, ABC):
    """Logits of images in [0, 1]. Subclasses implement `logits` of normalised images, and `named_stages` if they have
    any.

    Args:
        num_classes: number of classes.
        image_shape: (C, H, W) of the images.
        mean: mean of each channel (or one for all), which is subtracted from the image in [0, 1].
        std: standard deviation of each channel (or one for all), by which the difference is divided.

    Attributes:
        weights: the file that the weights were loaded from; None means that they are random.
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
        # Not part of the state: they are arguments of the architecture.
        self.register_buffer("_mean", torch.tensor(self.mean)[None, :, None, None], persistent=False)
        self.register_buffer("_std", torch.tensor(self.std)[None, :, None, None], persistent=False)

    @property
    def last_layer(self) -> nn.Module:
        """The layer that computes the logits: the last linear layer with ``num_classes`` outputs. Its input are the
        `features`, and head-only training trains it alone.

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
        """(B, D) penultimate features of images (B, C, H, W) in [0, 1], the input of `last_layer`."""
        return self.features_and_logits(x)[0]

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Penultimate features (B, D) and logits (B, num_classes) of images ``x``, from one forward pass."""
        found: list[Tensor] = []
        # Read by a hook, so that a subclass need not split its forward pass in two.
        hook = self.last_layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        try:
            logits = self(x)
        finally:
            hook.remove()
        return found[-1].flatten(1), logits

    def named_stages(self) -> dict[str, Stage]:
        """The feature maps that `activations` can return, by their names in the published code, in the order in which
        they are computed."""
        return {}

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The names that `activations` accepts, in the order in which the maps are computed."""
        return tuple(self.named_stages())

    def activations(self, x: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        """The named feature maps of images (B, C, H, W) in [0, 1]: (B, ...) each, in the network's own layout and in
        the order of ``names``; differentiable in ``x``.

        It takes a whole forward pass, which counts as a network call.

        Raises:
            ValueError: for a name that is not in `stage_names`, or if its map is not computed once in a forward pass as
                one tensor.
        """
        return self.activations_and_logits(x, names)[0]

    def activations_and_logits(self, x: Tensor, names: Collection[str]) -> tuple[dict[str, Tensor], Tensor]:
        """The feature maps of `activations`, and the logits (B, num_classes) of the same forward pass."""
        stages = self.named_stages()
        if unknown := [name for name in names if name not in stages]:
            known = f"its stages are {', '.join(stages)}"
            none = "it names none at all: override its `named_stages`, or choose another classifier"
            raise ValueError(f"{type(self).__name__} has no stage {unknown[0]!r}; {known if stages else none}.")
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        with ExitStack() as hooks:
            for name, seen in found.items():
                hooks.enter_context(stages[name].module.register_forward_hook(_keep_in(seen)))
            logits = self(x)
        for name, seen in found.items():
            if len(seen) != 1 or not isinstance(seen[0], Tensor):
                what = f"{len(seen)} times" if len(seen) != 1 else f"as a {type(seen[0]).__name__}"
                raise ValueError(
                    f"{type(self).__name__} computes its stage {name!r} {what} in a forward pass, and not once as one "
                    "tensor: choose another stage."
                )
        return {name: _finished(stages[name], seen[0]) for name, seen in found.items()}, logits


def _keep_in(seen: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    return lambda module, inputs, output: seen.append(output)


def _finished(stage: Stage, output: Tensor) -> Tensor:
    return output if stage.then is None else stage.then(output)
