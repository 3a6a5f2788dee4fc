"""The papers' victims: published sizes, weights files, and trained classifiers with another last layer."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lustral.networks import (
    CifarMobileNetV2,
    CifarResNet,
    Classifier,
    PreActResNet,
    ShuffleNetV2,
    SwishWideResNet,
    TimmClassifier,
    WideResNet,
    load_classifier,
    save_network,
    with_new_head,
)
from lustral.networks.same_conv import SameConv2d
from tests.contracts import generator, images, randomise

SMALL: dict[str, Callable[[], Classifier]] = {
    "basic": lambda: CifarResNet((1, 2), 4, channels=1, image_size=8),
    "bottleneck": lambda: CifarResNet((1, 1), 4, True, channels=1, image_size=8),
    "padded": lambda: CifarResNet((1, 1), 4, shortcut="pad", channels=1, image_size=8, mean=(0.4,)),
    "mobilenet": lambda: CifarMobileNetV2(channels=1, image_size=16),
    "shufflenet": lambda: ShuffleNetV2(0.5, channels=1, image_size=16),
    "shufflenet, large stem": lambda: ShuffleNetV2(0.5, "large", channels=1, image_size=32),
    "wide, all options": lambda: WideResNet(
        10, 2, channels=1, image_size=8, conv_bias=True, raw_shortcut=True, late_stride=True
    ),
    "swish": lambda: SwishWideResNet(10, 1, channels=1, image_size=8, mean=(0.4,), std=(0.5,)),
    "preact": lambda: PreActResNet((1, 1), 4, last_norm=False, channels=1, image_size=8),
    "preact, same": lambda: PreActResNet((1, 1), 4, "same", "silu", channels=1, image_size=8),
    "timm": lambda: TimmClassifier("resnet10t", 10, 32),
}


@pytest.fixture(params=SMALL)
def network(request: pytest.FixtureRequest) -> Classifier:
    made = SMALL[request.param]().eval()
    randomise(made, 0.1)
    return made


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (lambda: CifarResNet(), 11_173_962),
        (lambda: CifarResNet((3, 4, 6, 3), bottleneck=True), 23_520_842),
        (lambda: CifarResNet((9, 9, 9), 16, shortcut="pad"), 853_018),
        (lambda: CifarResNet((9, 9, 9), 16), 855_770),
        (lambda: CifarMobileNetV2(), 2_296_922),
        (lambda: ShuffleNetV2(), 1_263_854),
        (lambda: ShuffleNetV2(stem="large", num_classes=1000), 2_278_604),
        (lambda: WideResNet(28, 10, conv_bias=True), 36_479_194 + 16 + 9 * (160 + 320 + 640)),
        (lambda: SwishWideResNet(28, 10), 36_479_194),
        (lambda: PreActResNet(last_norm=False), 11_171_146),
        (lambda: PreActResNet(shortcut="activated"), 11_172_170),
        (lambda: PreActResNet(shortcut="same", activation="silu"), 12_548_426),
        (lambda: TimmClassifier("inception_resnet_v2", image_size=299), 55_843_464),
        (lambda: TimmClassifier("deit_small_patch16_224"), 22_050_664),
    ],
)
def test_published_sizes(build: Callable[[], nn.Module], count: int) -> None:
    with torch.device("meta"):
        network = build()
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_answers_survive_a_weights_file(network: Classifier, tmp_path: Path) -> None:
    x = images(3, network.image_shape)
    again = load_classifier(str(save_network(network, tmp_path / "w.safetensors"))).eval()
    with torch.no_grad():
        answer = network(x)
        assert answer.shape == (3, 10)
        assert torch.equal(again(x), answer)
        torch.testing.assert_close(network(x[1:2]), answer[1:2], rtol=1e-3, atol=1e-5)


def test_the_last_layer_is_the_last(network: Classifier) -> None:
    """Its bias moves the logits one to one."""
    x, head = images(2, network.image_shape), network.last_layer
    with torch.no_grad():
        before = network(x)
        step = torch.randn(10, generator=generator())
        head.get_parameter("bias").add_(step)
        torch.testing.assert_close(network(x) - before, step.expand(2, -1), rtol=1e-3, atol=1e-4)


def test_a_new_head_keeps_the_body(network: Classifier, tmp_path: Path) -> None:
    path = str(save_network(network, tmp_path / "w.safetensors"))
    other = with_new_head(path, 4).eval()
    assert (other.num_classes, other.weights, other.mean) == (4, None, network.mean)
    kept, inputs = network.state_dict(), {}
    changed = {name for name, tensor in other.state_dict().items() if not torch.equal(tensor, kept[name])}
    assert sorted(name.rpartition(".")[2] for name in changed) == ["bias", "weight"]
    for part in (network, other):
        part.last_layer.register_forward_hook(lambda module, args, _: inputs.update({id(module): args[0]}))
    x = images(2, network.image_shape)
    with torch.no_grad():
        network(x)
        assert other(x).shape == (2, 4)
    assert torch.equal(*inputs.values())


def test_a_new_head_may_see_other_images(tmp_path: Path) -> None:
    path = str(save_network(SMALL["timm"](), tmp_path / "w.safetensors"))
    assert with_new_head(path, 4, image_size=64).image_shape == (3, 64, 64)
    assert with_new_head(path, 4).image_shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CifarResNet(shortcut="none"), "shortcut is 'none'; it may be conv or pad"),
        (lambda: PreActResNet(shortcut="conv"), "shortcut is 'conv'; it may be raw, activated, same"),
        (lambda: PreActResNet(activation="gelu"), "activation is 'gelu'; it may be relu or silu"),
        (lambda: PreActResNet((2, 0)), r"blocks is \[2, 0\]; give the number of blocks"),
        (lambda: PreActResNet(shortcut="same", image_size=28), "image_size is 28; .* a multiple of 8"),
        (lambda: SwishWideResNet(11), r"depth is 11; a SwishWideResNet's is 6 n \+ 4"),
        (lambda: SwishWideResNet(10, image_size=30), "image_size is 30; a SwishWideResNet's is a multiple of 4"),
        (lambda: CifarResNet(()), r"blocks is \[\]; give the number of blocks of each stage"),
        (lambda: CifarResNet((2, 0)), r"blocks is \[2, 0\]"),
        (lambda: ShuffleNetV2(0.75), "scale is 0.75; it may be 0.5, 1.0, 1.5, 2.0"),
        (lambda: ShuffleNetV2(stem="tiny"), "stem is 'tiny'; it may be small or large"),
        (lambda: ShuffleNetV2(first_width=113), "first_width is 113; it must be an even number from 2 on"),
    ],
)
def test_impossible_victims_are_refused(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_transformer_is_built_for_the_size_of_its_images() -> None:
    with torch.device("meta"):
        network = TimmClassifier("vit_tiny_patch16_224", 7, 32)
    assert network.state_dict()["network.pos_embed"].shape[1] == 1 + 4


def test_same_padding_puts_its_zeros_below_and_on_the_right() -> None:
    conv = SameConv2d(1, 1, 2)
    with torch.no_grad():
        conv.weight.copy_(torch.arange(9.0).reshape(1, 1, 3, 3))
        x = torch.zeros(1, 1, 4, 4)
        x[0, 0, 0, 0], x[0, 0, 3, 3] = 1, 10
        # The first pixel is the first of the first window; the last one the middle of the last window.
        assert conv(x)[0, 0].tolist() == [[0.0, 0.0], [0.0, 40.0]]
        x[0, 0, 0, 1] = 1
        assert conv(x)[0, 0, 0, 0].item() == 1.0
