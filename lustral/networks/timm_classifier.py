"""ImageNet classifiers by their timm name."""

from collections.abc import Sequence
from typing import Any

import timm
from torch import Tensor, nn

from lustral.networks.builders import announced
from lustral.networks.classifier import Classifier, Stage
from lustral.networks.weights import load_into

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@announced
class TimmClassifier(Classifier):
    """A timm architecture, such as ``resnet50`` or ``deit_small_patch16_224``. Never downloads weights.

    Stages: the modules that timm lists in the model's ``feature_info``, such as "act1" and "layer1" ... "layer4" of a
    ResNet, and "blocks.0" ... "blocks.11" of a ViT. Their maps are laid out as the model has them: (B, C, H, W) in most
    convolutional networks; (B, N, C) of N tokens, those of classes and registers first, in ViTs; (B, H, W, C) in Swin.

    Args:
        name: timm's model name.
        num_classes: number of classes.
        image_size: height and width of the images it is given, in pixels.
        mean: mean of each channel, for the normalisation inside the network.
        std: standard deviation of each channel, for the normalisation inside the network.
        weights: a file written by `save_network`; None leaves the weights random.
    """

    def __init__(
        self,
        name: str,
        num_classes: int = 1000,
        image_size: int = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        weights: None | str = None,
    ) -> None:
        super().__init__(num_classes, (3, image_size, image_size), mean, std)
        if not timm.is_model(name):
            close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5]) or "see timm.list_models()"
            raise ValueError(f"timm has no model {name!r}; names like it: {close}.")
        self.name, self.image_size, self.weights = name, image_size, weights
        self.network = timm.create_model(name, pretrained=False, num_classes=num_classes, **_size(name, image_size))
        load_into(self, weights)

    @property
    def last_layer(self) -> nn.Module:
        return self.network.get_classifier()  # type: ignore[operator]

    def logits(self, x: Tensor) -> Tensor:
        return self.network(x)

    def named_stages(self) -> dict[str, Stage]:
        # For some models timm lists names of no module, and "" for none.
        modules = {name: module for name, module in self.network.named_modules() if name}
        listed = [entry["module"] for entry in getattr(self.network, "feature_info", ())]
        return {name: Stage(modules[name]) for name in listed if name in modules}


def _size(name: str, image_size: int) -> dict[str, Any]:
    """The size option of models that are built for one image size, such as ViTs, if it is not their default."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    fixed = config is not None and config.fixed_input_size and config.input_size[-1] != image_size
    return {"img_size": image_size} if fixed else {}
