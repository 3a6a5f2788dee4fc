"""Any PyTorch module as a classifier: handed over in Python, or made by a function that a recipe names."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lustral.describe import describe, foreign_source, state_sha256
from lustral.networks.classifier import Classifier, Stage
from lustral.networks.importing.checkpoints import read_checkpoint
from lustral.networks.importing.reading import existing

FROM_FACTORY = "factory"
"""The value of `TorchClassifier`'s ``weights`` which says that the factory itself returns a trained network."""


class WrappedClassifier(Classifier):
    """A module that maps images to logits, of any origin, as a `Classifier`.

    Stages are the module's own submodules by their dotted names.

    Args:
        network: maps images (B, C, H, W), normalised by ``mean`` and ``std``, to logits (B, K).
        num_classes: K; at least 2.
        image_shape: (C, H, W) of its images.
        mean: mean of each channel, which is subtracted from the image in [0, 1]. Keep 0 and 1 if the network takes
            images in [0, 1], or normalises inside itself.
        std: standard deviation of each channel, by which the difference is divided.

    Raises:
        ValueError: if ``network`` does not return one row of K logits an image.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        image_shape: tuple[int, int, int],
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__(num_classes, image_shape, mean, std)
        self.network = network
        self.weights: None | str = "handed over in Python"

    def logits(self, x: Tensor) -> Tensor:
        found = self.network(x)
        if not isinstance(found, Tensor) or found.shape != (len(x), self.num_classes):
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"{type(self.network).__name__} returned {what} for {len(x)} images, not their logits "
                f"({len(x)}, {self.num_classes}): give num_classes as it is, or wrap the module in one that returns "
                "logits alone."
            )
        return found

    def named_stages(self) -> dict[str, Stage]:
        return {name: Stage(module) for name, module in self.network.named_modules() if name}

    def described(self) -> dict[str, Any]:
        """The network by class, source and weights, for the fingerprint: its arguments are not known."""
        network = self.network
        return {
            "network": {
                "class": type(network).__name__,
                "module": type(network).__module__,
                **foreign_source(type(network)),
                "weights_sha256": state_sha256(network.state_dict()),
            },
            "num_classes": self.num_classes,
            "image_shape": list(self.image_shape),
            "mean": self.mean,
            "std": self.std,
        }


class TorchClassifier(WrappedClassifier):
    """A network that a function of yours makes, for recipes; no subclass is needed.

    Args:
        factory: dotted path of the function or class, such as ``my_package.models.resnet``; it must be importable from
            where the command is run.
        num_classes: number of classes.
        image_shape: (C, H, W) of its images.
        arguments: keyword arguments of the factory; plain values.
        weights: a checkpoint of the network's state dict (``.pt``, ``.pth`` or ``.safetensors``; under "state_dict" or
            "model", or at the top), loaded strictly; "factory" if the factory returns trained weights; None leaves them
            random.
        mean: mean of each channel, for the normalisation.
        std: standard deviation of each channel.

    Raises:
        ValueError: if the factory cannot be imported or called, returns no module, or the weights are not its own.
        FileNotFoundError: if there is no such file of weights.
    """

    def __init__(
        self,
        factory: str,
        num_classes: int,
        image_shape: tuple[int, int, int],
        arguments: Mapping[str, Any] | None = None,
        weights: None | str = None,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__(_made(factory, arguments or {}), num_classes, image_shape, mean, std)
        self.factory, self.arguments, self.weights = factory, arguments, weights
        if weights not in (None, FROM_FACTORY):
            _load(self.network, existing(weights))

    def described(self) -> dict[str, Any]:
        return {**super().described(), "factory": self.factory, "arguments": describe(self.arguments or {})}


def _made(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    module, _, name = factory.rpartition(".")
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"factory {factory!r} cannot be imported ({error}): give the dotted path of a function or class, and run "
            "the command from the folder that it is importable from."
        ) from error
    try:
        network = function(**arguments)
    except TypeError as error:
        raise ValueError(f"{factory} does not take {dict(arguments)} ({error}): set `arguments` to fit.") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{factory} returned a {type(network).__name__}; it must return a torch.nn.Module.")
    return network


def _load(network: nn.Module, path: Path) -> None:
    tensors = read_checkpoint(path)
    own = network.state_dict()
    missing, strange = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    wrong = [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    if missing or strange or wrong:
        which = f"lacks {missing[0]}" if missing else f"has {strange[0]}" if strange else f"has another {wrong[0]}"
        raise ValueError(
            f"{path} is not of this {type(network).__name__}: it {which} "
            f"({len(missing)} missing, {len(strange)} unknown, {len(wrong)} of another shape). Set `arguments` as the "
            "network was trained with, or choose its file."
        )
    with torch.no_grad():
        network.load_state_dict(tensors)
