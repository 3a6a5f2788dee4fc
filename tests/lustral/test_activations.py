"""Named feature maps of classifiers: those computed by hand, in one call, and nothing is left behind."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lustral.networks import (
    CifarMobileNetV2,
    CifarResNet,
    Classifier,
    PreActResNet,
    ShuffleNetV2,
    Stage,
    SwishWideResNet,
    TimmClassifier,
    WideResNet,
)
from lustral.networks.builders import builders
from tests.contracts import images, randomise

Maps = Iterator[tuple[str, Tensor]]
SMALL: dict[str, Any] = {"num_classes": 3, "image_size": 8, "mean": (0.3,), "std": (0.5,)}


# The maps by hand, of normalised images, in the order in which they are computed


def _wide(net: Any, x: Tensor, activate: Callable[[Tensor], Tensor]) -> Maps:
    x = net.stem(x)
    for number in range(3):
        for block in net.stages[number]:
            inner = activate(block.bn2(block.conv1(activate(block.bn1(x)))))
            x = block(x)
        yield f"block{number + 1}.relu2", inner
        yield f"block{number + 1}", x
    yield "relu", activate(net.norm(x))


def _layers(x: Tensor, groups: Iterable[Any], first: int = 1, word: str = "layer") -> Maps:
    for number, blocks in enumerate(groups, first):
        for block in blocks:
            x = block(x)
        yield f"{word}{number}", x


def _preact(net: Any, x: Tensor) -> Maps:
    for name, x in _layers(net.stem(x), net.stages):  # noqa: B020  (the last one is needed after)
        yield name, x
    if net.norm is not None:
        yield "relu", {"relu": F.relu, "silu": F.silu}[net.activation](net.norm(x))


def _mobilenet(net: Any, x: Tensor) -> Maps:
    ends = (0, 1, 3, 6, 10, 13, 16, 17)  # 1, 2, 3, 4, 3, 3 and 1 blocks
    groups = [net.blocks[ends[k] : ends[k + 1]] for k in range(7)]
    for name, x in _layers(F.relu(net.norm(net.stem(x))), groups):  # noqa: B020
        yield name, x
    yield "relu", F.relu(net.last_norm(net.last(x)))


def _shufflenet(net: Any, x: Tensor) -> Maps:
    for name, x in _layers(net.first(x), net.stages, 2, "stage"):  # noqa: B020
        yield name, x
    yield "conv5", net.last(x)


def _timm_resnet(net: Any, x: Tensor) -> Maps:
    net = net.network
    x = net.act1(net.bn1(net.conv1(x)))
    yield "act1", x
    x = net.maxpool(x)
    for number in range(1, 5):
        x = getattr(net, f"layer{number}")(x)
        yield f"layer{number}", x


def _deit(net: Any, x: Tensor) -> Maps:
    net = net.network
    x = net.patch_embed(x)
    x = torch.cat((net.cls_token.expand(len(x), -1, -1), x), dim=1) + net.pos_embed
    for number, block in enumerate(net.blocks):
        x = block(x)
        yield f"blocks.{number}", x


NETWORKS: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], Maps]]] = {
    "WideResNet": (lambda: WideResNet(16, 1, **SMALL), lambda net, x: _wide(net, x, F.relu)),
    "SwishWideResNet": (lambda: SwishWideResNet(10, 1, **SMALL), lambda net, x: _wide(net, x, F.silu)),
    "PreActResNet": (lambda: PreActResNet((1, 2, 1), 4, activation="silu", **SMALL), _preact),
    "PreActResNet_without_norm": (lambda: PreActResNet((1, 1), 4, last_norm=False, **SMALL), _preact),
    "CifarResNet": (
        lambda: CifarResNet((2, 1), 4, **SMALL),
        lambda net, x: _layers(F.relu(net.norm(net.stem(x))), net.stages),
    ),
    "CifarMobileNetV2": (lambda: CifarMobileNetV2(**SMALL), _mobilenet),
    "ShuffleNetV2": (lambda: ShuffleNetV2(0.5, **SMALL), _shufflenet),
    "TimmClassifier_resnet": (lambda: TimmClassifier("resnet10t", 3, 32), _timm_resnet),
    "TimmClassifier_vit": (lambda: TimmClassifier("deit_tiny_patch16_224", 3, 32), _deit),
}


def _made(build: Callable[[], Any], dtype: torch.dtype = torch.float64) -> Any:
    network = build().to(dtype).eval().requires_grad_(False)
    randomise(network, 0.1)
    for name, buffer in network.named_buffers():
        if "running_var" in name:
            buffer.fill_(0.5)  # else the deeper maps are as good as zero
    return network


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Any:
    return _made(NETWORKS[request.param][0])


def _batch(network: Any, size: int = 3) -> Tensor:
    return images(size, network.image_shape, dtype=torch.float64)


def _hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


# Every built-in classifier ------------------------------------------------------------


def test_every_classifier_of_the_package_is_asked() -> None:
    announced = {name for name, kind in builders().items() if isinstance(kind, type) and issubclass(kind, Classifier)}
    assert {name.partition("_")[0] for name in NETWORKS} == announced


@pytest.mark.parametrize("name", NETWORKS)
def test_activations_and_their_gradients_are_those_by_hand(name: str) -> None:
    build, by_hand = NETWORKS[name]
    network = _made(build)
    x = _batch(network).requires_grad_()
    expected = dict(by_hand(network, (x - network._mean) / network._std))
    assert network.stage_names == tuple(expected)
    found, logits = network.activations_and_logits(x, network.stage_names)
    assert list(found) == list(expected)
    for stage, values in expected.items():
        assert len(found[stage]) == len(x)
        torch.testing.assert_close(found[stage], values, rtol=1e-12, atol=1e-12)
        upstream = torch.cos(torch.arange(values.numel(), dtype=values.dtype)).reshape(values.shape)
        theirs, ours = (
            torch.autograd.grad((m * upstream).sum(), x, retain_graph=True)[0] for m in (values, found[stage])
        )
        assert theirs.abs().amax() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12 * float(theirs.abs().amax()))
    assert torch.equal(logits, network(x))
    assert torch.autograd.grad(logits.sum(), x)[0].isfinite().all()


def test_a_map_is_a_row_an_image(network: Any) -> None:
    x = _batch(network, 4)
    with torch.no_grad():
        together = network.activations(x, network.stage_names)
        alone = network.activations(x[2:3], network.stage_names)
    for name in network.stage_names:
        assert together[name].shape[1:] == alone[name].shape[1:]
        torch.testing.assert_close(together[name][2:3], alone[name], rtol=1e-9, atol=1e-9)


def test_it_takes_one_forward_pass_and_leaves_no_hook(network: Any) -> None:
    calls: list[nn.Module] = []
    parts = [network, *(module for module in network.modules() if not list(module.children()))]
    handles = [part.register_forward_hook(lambda module, *_: calls.append(module)) for part in parts]
    before, x = _hooks(network), _batch(network)
    network(x)
    once = list(calls)
    for ask in (network.activations, network.activations_and_logits):
        calls.clear()
        ask(x, network.stage_names)
        assert calls == once
    assert _hooks(network) == before == len(handles)


def test_what_is_asked_is_given_in_the_order_asked(network: Any) -> None:
    x = _batch(network)
    with torch.no_grad():
        every = network.activations(x, network.stage_names)
        names = (network.stage_names[-1], network.stage_names[0])
        some = network.activations(x, names)
        assert tuple(some) == names
        assert all(torch.equal(some[name], every[name]) for name in names)
        assert network.activations(x, ()) == {}


def test_an_unknown_stage_is_refused_with_those_there_are(network: Any) -> None:
    known = ", ".join(network.stage_names)
    with pytest.raises(ValueError) as caught:
        network.activations(_batch(network), (network.stage_names[0], "layer9"))
    assert str(caught.value) == f"{type(network).__name__} has no stage 'layer9'; its stages are {known}."
    assert _hooks(network) == 0


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (
            lambda: WideResNet(28, 10),
            {
                "block1.relu2": (160, 32, 32),
                "block1": (160, 32, 32),
                "block2.relu2": (320, 16, 16),
                "block2": (320, 16, 16),
                "block3.relu2": (640, 8, 8),
                "block3": (640, 8, 8),
                "relu": (640, 8, 8),
            },
        ),
        (
            lambda: CifarMobileNetV2(),
            {
                "layer1": (16, 32, 32),
                "layer2": (24, 32, 32),
                "layer3": (32, 16, 16),
                "layer4": (64, 8, 8),
                "layer5": (96, 8, 8),
                "layer6": (160, 4, 4),
                "layer7": (320, 4, 4),
                "relu": (1280, 4, 4),
            },
        ),
        (
            lambda: ShuffleNetV2(stem="large", image_size=224),
            {"stage2": (116, 28, 28), "stage3": (232, 14, 14), "stage4": (464, 7, 7), "conv5": (1024, 7, 7)},
        ),
        (
            lambda: CifarResNet((3, 4, 6, 3), bottleneck=True),
            {"layer1": (256, 32, 32), "layer2": (512, 16, 16), "layer3": (1024, 8, 8), "layer4": (2048, 4, 4)},
        ),
        (
            lambda: TimmClassifier("resnet50"),
            {
                "act1": (64, 112, 112),
                "layer1": (256, 56, 56),
                "layer2": (512, 28, 28),
                "layer3": (1024, 14, 14),
                "layer4": (2048, 7, 7),
            },
        ),
        (
            lambda: TimmClassifier("deit_small_patch16_224"),
            {f"blocks.{number}": (197, 384) for number in range(12)},
        ),
    ],
    ids=["wrn-28-10", "mobilenet", "shufflenet", "resnet50", "timm-resnet50", "deit-small"],
)
def test_maps_have_the_published_shapes(build: Callable[[], Any], expected: dict[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        network = build().eval()
        found = network.activations(torch.zeros(2, *network.image_shape), network.stage_names)
    assert {name: tuple(values.shape) for name, values in found.items()} == {k: (2, *v) for k, v in expected.items()}


def test_a_head_is_given_the_mean_of_the_last_map() -> None:
    network, x = _made(lambda: WideResNet(10, 1, **SMALL)), images(3, (3, 8, 8), dtype=torch.float64)
    torch.testing.assert_close(network.activations(x, ("relu",))["relu"].mean(dim=(2, 3)), network.features(x))


def test_dropout_comes_after_the_activation() -> None:
    """So a map of a network in training has no zeros that its evaluation has not."""
    network = _made(lambda: WideResNet(10, 1, dropout=0.9, **SMALL)).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = images(3, (3, 8, 8), dtype=torch.float64)
    found = network.activations(x, ("block1.relu2",))["block1.relu2"]
    assert torch.equal(found, network.eval().activations(x, ("block1.relu2",))["block1.relu2"])


def test_timm_models_whose_list_is_odd_have_the_stages_that_exist() -> None:
    with torch.device("meta"):
        hrnet = TimmClassifier("hrnet_w18_small", 3).eval()
        assert hrnet.stage_names == ("stage2", "stage3", "stage4")
        with pytest.raises(
            ValueError, match="computes its stage 'stage2' as a list in a forward pass, and not once as one"
        ):
            hrnet.activations(torch.zeros(1, 3, 224, 224), ("stage2",))
    assert _hooks(hrnet) == 0


# A user's own ------------------------------------------------------------


class _Plain(Classifier):
    """Without stages, but with a module that is called so."""

    def __init__(self) -> None:
        super().__init__(3, (1, 4, 4), (0.0,), (1.0,))
        self.stages = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
        self.other, self.head = nn.Identity(), nn.Linear(8, 3)

    def logits(self, x: Tensor) -> Tensor:
        if x.isnan().any():
            raise FloatingPointError("a NaN")
        return self.head(self.stages(self.stages[1](x)).flatten(1))


class _Staged(_Plain):
    def named_stages(self) -> dict[str, Stage]:
        return {
            "twice": Stage(self.stages[1]),
            "conv": Stage(self.stages[0]),
            "squared": Stage(self.stages[0], torch.square),
            "never": Stage(self.other),
        }


def test_a_classifier_without_stages_says_so() -> None:
    network, x = _Plain(), images(2)
    assert network.stage_names == ()
    assert network.activations(x, ()) == {}
    with pytest.raises(
        ValueError, match=r"^_Plain has no stage 'conv'; it names none at all: override .*classifier\.$"
    ):
        network.activations(x, ("conv",))


def test_a_user_names_stages_of_their_own() -> None:
    network, x = _Staged(), images(2)
    found = network.activations(x, ["squared", "conv"])
    assert torch.equal(found["conv"], network.stages[0](x))
    assert torch.equal(found["squared"], found["conv"].square())


@pytest.mark.parametrize(("name", "times"), [("twice", 2), ("never", 0)])
def test_a_map_that_is_not_computed_once_is_refused(name: str, times: int) -> None:
    network = _Staged()
    with pytest.raises(
        ValueError, match=f"^_Staged computes its stage '{name}' {times} times in a forward pass, and not"
    ):
        network.activations(images(2), (name,))
    assert _hooks(network) == 0


def test_hooks_are_gone_after_an_exception_and_the_caller_s_are_kept() -> None:
    network, x, seen = _Staged(), images(2), []
    with network.stages[0].register_forward_hook(lambda *_: seen.append(1)):
        for ask in (network.activations, network.activations_and_logits):
            with pytest.raises(FloatingPointError, match="a NaN"):
                ask(x * float("nan"), ("conv",))
            assert _hooks(network) == 1
        network.activations(x, ("conv",))
        assert seen == [1]
    assert _hooks(network) == 0


def test_maps_have_a_graph_exactly_where_gradients_are_on() -> None:
    network, x = _Staged().requires_grad_(False), images(2).requires_grad_()
    assert network.activations(x, ("conv",))["conv"].requires_grad
    with torch.no_grad():
        assert not network.activations(x, ("conv",))["conv"].requires_grad
    with torch.inference_mode():
        assert network.activations(x, ("squared",))["squared"].is_inference()
