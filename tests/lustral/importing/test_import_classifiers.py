"""Published classifiers: what the import makes of their files, compared with the originals."""

import argparse
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from lustral.networks import CifarResNet, Classifier, ShuffleNetV2, TimmClassifier, WideResNet, load_classifier
from lustral.networks.importing import cifar_nets, imagenet_classifiers, wide_resnets
from lustral.networks.importing.command import import_weights
from lustral.networks.weights import architecture, read_weights
from tests.contracts import generator, images
from tests.lustral.importing.classifier_originals import (
    Original,
    functional_wide_resnet,
    meliketoy_wide_resnet,
    mobilenet,
    resnet_18_narrow,
    resnet_20,
    resnet_50_narrow,
    shufflenet,
    trades_wide_resnet,
)

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)


# Their files ------------------------------------------------------------

Forward = Callable[[Original, Tensor], Tensor]
RAW = ((0.0,), (1.0,))
DIFFPURE = (CIFAR_MEAN, (0.2471, 0.2435, 0.2616))
KUANGLIU = (CIFAR_MEAN, (0.2023, 0.1994, 0.2010))
STATISTICS = (".running_mean", ".running_var")


def _parallel(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in state.items()}


def _wrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": tensor for name, tensor in state.items()}


def _apart(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The older form of the functional files: parameters and statistics apart."""
    stats = {name: tensor for name, tensor in state.items() if name.endswith(STATISTICS)}
    return {"params": {name: t for name, t in state.items() if name not in stats}, "stats": stats, "epoch": 3}


@dataclass(frozen=True)
class Published:
    """A format, the original behind it, its (mean, std), the form of its file, whether that counts batches, options."""

    form: str
    forward: Forward
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    file: Callable[[dict[str, Tensor]], Any]
    counted: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)


OPTIONS = {"mean": KUANGLIU[0], "std": KUANGLIU[1]}
CASES = {
    "robustbench": Published("robustbench-wrn", trades_wide_resnet, RAW, dict),
    "robustbench, nested": Published(
        "robustbench-wrn", trades_wide_resnet, RAW, lambda state: {"state_dict": _parallel(state), "epoch": 200}
    ),
    "robustbench, uncounted": Published("robustbench-wrn", trades_wide_resnet, RAW, _parallel, False),
    "robustbench, wrapped": Published("robustbench-wrn", trades_wide_resnet, RAW, _wrapped),
    "robustbench, wrapped in parallel": Published(
        "robustbench-wrn", trades_wide_resnet, RAW, lambda state: {"state_dict": _parallel(_wrapped(state))}
    ),
    "diffpure": Published("diffpure-wrn", trades_wide_resnet, DIFFPURE, _parallel),
    "meliketoy": Published(
        "meliketoy-wrn", meliketoy_wide_resnet, KUANGLIU, lambda state: {"net": state, "acc": 95.0, "epoch": 200}
    ),
    "meliketoy, another data set": Published(
        *("meliketoy-wrn", partial(meliketoy_wide_resnet, classes=100), ((0.5, 0.48, 0.44), (0.25,) * 3)),
        *(dict, True, {"mean": (0.5, 0.48, 0.44), "std": 0.25}),
    ),
    "szagoruyko": Published(
        *("szagoruyko-wrn", functional_wide_resnet, RAW),
        *(lambda state: {"params": state, "epoch": 3}, False, {"mean": 0, "std": 1}),
    ),
    "szagoruyko, older": Published("szagoruyko-wrn", functional_wide_resnet, KUANGLIU, _apart, False, OPTIONS),
    "diffpure resnet": Published("diffpure-resnet50", resnet_50_narrow, DIFFPURE, _parallel),
    "resnet-18": Published(
        *("kuangliu-resnet", resnet_18_narrow, KUANGLIU),
        *(lambda state: {"net": _parallel(state), "acc": 95.0}, True, OPTIONS),
    ),
    "resnet-20": Published("kuangliu-resnet", resnet_20, KUANGLIU, dict, True, OPTIONS),
    "mobilenet": Published("kuangliu-mobilenetv2", mobilenet, KUANGLIU, dict, True, OPTIONS),
    "shufflenet of 224 channels": Published(
        *("kuangliu-shufflenetv2", partial(shufflenet, widths=(224, 488, 976), last=2048), KUANGLIU),
        *(lambda state: {"net": _wrapped(_parallel(state))}, True, OPTIONS),
    ),
    "shufflenet": Published("kuangliu-shufflenetv2", shufflenet, RAW, dict, True, {"mean": 0.0, "std": 1.0}),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes that formats of one network ask for are those of the small originals."""
    for form in wide_resnets.SIZES:
        monkeypatch.setitem(wide_resnets.SIZES, form, (16, 2))
    monkeypatch.setitem(cifar_nets.RESNET50, "width", 8)


def _normalised(x: Tensor, normalisation: Any) -> Tensor:
    mean, std = (torch.tensor(values)[None, :, None, None] for values in normalisation)
    return (x - mean) / std


def _agrees(network: Classifier, x: Tensor, expected: Tensor) -> None:
    assert not network.training
    with torch.no_grad():
        error = (network(x) - expected).abs().max() / expected.abs().max()
    assert float(error) < 1e-5


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("case", CASES)
def test_an_imported_classifier_is_the_original(case: str, tmp_path: Path) -> None:
    published, x = CASES[case], images(2, (3, 32, 32))
    original, file, target = Original(published.counted), tmp_path / "published.pt", tmp_path / "w.safetensors"
    expected = published.forward(original, _normalised(x, published.normalisation))
    torch.save(published.file(original.state), file)
    network = load_classifier(str(import_weights(published.form, file, target, **published.options))).eval()
    _agrees(network, x, expected)
    counters = {int(t) for name, t in network.state_dict().items() if name.endswith("num_batches_tracked")}
    assert counters == {7 if published.counted else 0}


def test_the_options_of_wide_resnets_are_different_functions(tmp_path: Path) -> None:
    """Each of them alone changes the logits, so an import with the wrong one could not pass unseen."""
    original, x = Original(), images(2, (3, 32, 32))
    expected = meliketoy_wide_resnet(original, _normalised(x, KUANGLIU))
    torch.save(original.state, tmp_path / "published.pt")
    path = import_weights("meliketoy-wrn", tmp_path / "published.pt", tmp_path / "w.safetensors")
    network = load_classifier(str(path))
    assert isinstance(network, WideResNet)
    assert (network.depth, network.width, network.dropout, network.num_classes) == (16, 2, 0.3, 10)
    for option in ("raw_shortcut", "late_stride"):
        choices = architecture(network)["arguments"] | {option: False}
        other = WideResNet(**choices)
        other.load_state_dict(network.state_dict())
        with torch.no_grad():
            assert float((other.eval()(x) - expected).abs().max()) > 0.01 * float(expected.abs().max())


def test_shuffled_channels_and_stem_are_torchvisions() -> None:
    """The large stem against torchvision's own ShuffleNetV2, whose layers stand in the same order."""
    theirs = _random(torchvision.models.shufflenet_v2_x0_5(num_classes=7))
    ours = ShuffleNetV2(0.5, "large", num_classes=7, image_size=64).eval()
    assert [t.shape for t in ours.state_dict().values()] == [t.shape for t in theirs.state_dict().values()]
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = images(2, (3, 64, 64))
    with torch.no_grad():
        _agrees(ours, x, theirs(x))


# ImageNet ------------------------------------------------------------


def _random(network: nn.Module) -> nn.Module:
    source = generator()
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=source))
        elif tensor.ndim == 1:
            around = 1.0 if name.endswith("weight") else 0.0
            tensor.copy_(around + 0.2 * torch.randn(tensor.shape, generator=source))
        elif tensor.ndim:
            fan_in = tensor[0].numel()
            tensor.copy_(fan_in**-0.5 * torch.randn(tensor.shape, generator=source))
    return network.eval()


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("counted", [True, False])
def test_torchvisions_files_go_into_timms_network(counted: bool, tmp_path: Path) -> None:
    theirs, x = _random(torchvision.models.resnet18()), images(2, (3, 64, 64))
    state = {n: t for n, t in theirs.state_dict().items() if counted or not n.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "resnet18.pth")
    options = {"name": "resnet18", "tag": "IMAGENET1K_V1"}
    path = import_weights("torchvision", tmp_path / "resnet18.pth", tmp_path / "w.safetensors", **options)
    with torch.no_grad():
        _agrees(load_classifier(str(path)).eval(), x, theirs(_normalised(x, IMAGENET)))
    TimmClassifier("resnet18", weights=str(path))  # as a config names it
    notes = read_weights(path)[0]["notes"]
    assert (notes["tag"], notes["name"], notes["format"]) == ("IMAGENET1K_V1", "resnet18", "torchvision")


@pytest.mark.parametrize("name", imagenet_classifiers.TORCHVISION_NAMES)
def test_torchvision_and_timm_share_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        theirs, timms = getattr(torchvision.models, name)().state_dict(), timm.create_model(name).state_dict()
    assert {n: t.shape for n, t in theirs.items()} == {n: t.shape for n, t in timms.items()}


@pytest.mark.parametrize("name", ["resnet50", "wide_resnet50_2"])
def test_torchvision_and_timm_share_the_function(name: str) -> None:
    theirs = _random(getattr(torchvision.models, name)(num_classes=7))
    ours = timm.create_model(name, num_classes=7).eval()
    ours.load_state_dict(theirs.state_dict())
    x = images(1, (3, 64, 64))
    with torch.no_grad():
        expected = theirs(x)
        assert float((ours(x) - expected).abs().max() / expected.abs().max()) < 1e-5


def test_a_file_of_another_tag_is_refused_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"conv1.weight": torch.ones(1)}, tmp_path / "resnet50.pth")
    monkeypatch.setattr(imagenet_classifiers, "sha256", lambda path: "11ad3fa6" + "0" * 56)
    with pytest.raises(ValueError, match="is the file of resnet50 IMAGENET1K_V2, not of IMAGENET1K_V1"):
        _import(tmp_path / "resnet50.pth", "torchvision", name="resnet50", tag="IMAGENET1K_V1")


def _deit(state: Mapping[str, Tensor], x: Tensor, heads: int) -> Tensor:
    """A vision transformer with DeiT's names, token by token."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    patches = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16)
    tokens = patches.flatten(2).transpose(1, 2)
    tokens = torch.cat([state["cls_token"].expand(len(x), -1, -1), tokens], 1) + state["pos_embed"]
    for block in range(12):
        name, width = f"blocks.{block}", tokens.shape[-1]
        q, k, v = linear(norm(tokens, f"{name}.norm1"), f"{name}.attn.qkv").split(width, -1)
        mixed = []
        for h in range(heads):
            part = slice(h * width // heads, (h + 1) * width // heads)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / (width // heads) ** 0.5
            mixed.append(scores.softmax(-1) @ v[..., part])
        tokens = tokens + linear(torch.cat(mixed, -1), f"{name}.attn.proj")
        hidden = F.gelu(linear(norm(tokens, f"{name}.norm2"), f"{name}.mlp.fc1"))
        tokens = tokens + linear(hidden, f"{name}.mlp.fc2")
    return linear(norm(tokens, "norm")[:, 0], "head")


def test_deits_own_file_is_imported(tmp_path: Path) -> None:
    """The tiny one: the same function as the small one with half of its heads."""
    with torch.device("meta"):
        empty = timm.create_model("deit_tiny_patch16_224").state_dict()
    shapes = {name: tensor.shape for name, tensor in empty.items()}
    source = generator()
    state = {n: torch.randn(s, generator=source) * (0.3 if len(s) != 2 else s[1] ** -0.5) for n, s in shapes.items()}
    torch.save({"model": state}, tmp_path / "deit.pth")
    options = {"name": "deit_tiny_patch16_224", "tag": "fb_in1k"}
    path = import_weights("timm", tmp_path / "deit.pth", tmp_path / "w.safetensors", **options)
    x = images(1, (3, 224, 224))
    _agrees(load_classifier(str(path)).eval(), x, _deit(state, _normalised(x, IMAGENET), 3))


def test_a_safetensors_file_of_timm_brings_its_normalisation(tmp_path: Path) -> None:
    """This one was trained on images in [-1, 1], and timm's table says so. The names bear DataParallel's prefix."""
    name, tag = "vit_tiny_patch16_224", "augreg_in21k_ft_in1k"
    theirs = timm.create_model(name).eval()
    save_file(_parallel(theirs.state_dict()), tmp_path / "model.safetensors")
    path = import_weights("timm", tmp_path / "model.safetensors", tmp_path / "w.safetensors", name=name, tag=tag)
    network, x = load_classifier(str(path)).eval(), images(1, (3, 224, 224))
    assert network.mean == [0.5, 0.5, 0.5]
    with torch.no_grad():
        _agrees(network, x, theirs(2 * x - 1))


OWN = {"name": "resnet10t", "num_classes": 7, "image_size": 32, "mean": 0.5, "std": (0.2, 0.3, 0.4)}


@pytest.mark.parametrize(
    ("pack", "more"),
    [
        (lambda state: {"state_dict": _parallel(state), "args": argparse.Namespace(lr=0.1), "epoch": 3}, {}),
        (lambda state: {"model": state, "optimizer": {"state": {}}}, {}),
        (lambda state: {"state_dict": {}, "state_dict_ema": state}, {"key": "state_dict_ema"}),
    ],
)
def test_a_network_of_ones_own_comes_from_any_checkpoint(
    pack: Callable[[Mapping[str, Tensor]], Any], more: dict[str, str], tmp_path: Path
) -> None:
    theirs, x = timm.create_model("resnet10t", num_classes=7).eval(), images(2, (3, 32, 32))
    torch.save(pack(theirs.state_dict()), tmp_path / "checkpoint.pth")
    path = import_weights("timm", tmp_path / "checkpoint.pth", tmp_path / "w.safetensors", **OWN, **more)
    network = load_classifier(str(path)).eval()
    with torch.no_grad():
        _agrees(network, x, theirs(_normalised(x, ((0.5,), OWN["std"]))))
    assert (network.num_classes, network.image_shape) == (7, (3, 32, 32))


# Refusals ------------------------------------------------------------


def _import(source: Path, form: str, **options: Any) -> None:
    import_weights(form, source, source.with_name("w.safetensors"), **options)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("case", ["robustbench", "meliketoy", "szagoruyko", "resnet-18", "mobilenet", "shufflenet"])
def test_files_that_do_not_fit_are_refused(case: str, tmp_path: Path) -> None:
    published, path = CASES[case], tmp_path / "published.pt"
    original = Original(published.counted)
    published.forward(original, images(1, (3, 32, 32)))
    norm = next(name for name in original.state if name.endswith("running_mean"))

    def refused(state: dict[str, Tensor], message: str) -> None:
        torch.save(published.file(state), path)
        with pytest.raises(ValueError, match=message):
            _import(path, published.form, **published.options)
        assert not path.with_name("w.safetensors").exists()

    refused({name: t for name, t in original.state.items() if name != norm}, f"1 missing .{norm}.; 0 unknown")
    refused(original.state | {"conv9.weight": torch.ones(2)}, "0 missing; 1 unknown .*conv9")
    refused(original.state | {norm: torch.ones(3)}, r"1 of another shape .*gives \(3,\)")
    refused(original.state | {norm: torch.full_like(original.state[norm], float("nan"))}, "NaN or Inf")


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("it_ran",)


def test_pickled_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"net": _Evil(), "acc": 95.0}, tmp_path / "wide-resnet-28x10.t7")
    asked = rf"asks for more than tensors and plain containers \(GLOBAL {os.name}\.mkdir\), .* could run code: if"
    with pytest.raises(ValueError, match=asked):
        _import(tmp_path / "wide-resnet-28x10.t7", "meliketoy-wrn")
    assert not (tmp_path / "it_ran").exists()


def _write_module(path: Path) -> None:
    torch.save({"net": nn.Linear(2, 2)}, path)


def _write_plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"net": 1}, protocol=4))


def _write_page(path: Path) -> None:
    path.write_text("<html>Too many downloads</html>")


def _write_script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the age of scripts
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_write_module, r"\(GLOBAL torch\.nn\.modules\.linear\.Linear\)"),
        (_write_plain_pickle, "is no file of torch.save, or .*check --format"),
        (_write_page, "is no file of torch.save, or .*download it again"),
        (_write_script, "no file of torch.save .*TorchScript"),
    ],
)
def test_torchs_own_advice_is_not_handed_on(write: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    """It is how to load such a file all the same; and there are no warnings either (they are errors here)."""
    write(tmp_path / "Standard.pt")
    with pytest.raises(ValueError, match=message) as caught:
        _import(tmp_path / "Standard.pt", "robustbench-wrn")
    for strange in ("\n", "\x1b", "weights_only` set", "allowlist", "pytorch.org"):
        assert strange not in str(caught.value)


@pytest.mark.parametrize(("form", "depth", "width"), [("diffpure-wrn", 70, 16), ("robustbench-wrn", 28, 10)])
def test_wide_resnets_of_the_same_names_are_told_apart_by_their_size(
    form: str, depth: int, width: int, tmp_path: Path
) -> None:
    """Each would load as the other, with the wrong normalisation."""
    kernel, path = torch.zeros(16 * width, 16, 1, 1), tmp_path / "weights.pt"
    torch.save({f"block1.layer.{i}.conv1.weight": kernel for i in range((depth - 4) // 6)}, path)
    (wrong,) = {"diffpure-wrn", "robustbench-wrn"} - {form}
    with pytest.raises(ValueError, match=f"is a WRN-{depth}-{width}, .*choose --format {form}"):
        _import(path, wrong)
    with pytest.raises(ValueError, match=r"should hold fc\.weight"):  # its own format goes on
        _import(path, form)


@pytest.mark.parametrize("form", ["diffpure-wrn", "robustbench-wrn"])
def test_other_sizes_are_refused(form: str, tmp_path: Path) -> None:
    """Their normalisation is another's: Standard takes raw images, most of the zoo does not."""
    original, path = Original(), tmp_path / "weights.pt"
    trades_wide_resnet(original, images(1, (3, 32, 32)))
    torch.save(original.state, path)
    with pytest.raises(ValueError, match=rf"is a WRN-16-2, and --format {form} is for the WRN-(28-10|70-16) that is"):
        _import(path, form)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("form", "forward", "message"),
    [
        ("robustbench-wrn", trades_wide_resnet, "has 100 classes and 3 channels, .*CIFAR-10's 10 and 3"),
        ("diffpure-wrn", trades_wide_resnet, "has 100 classes and 3 channels, .*CIFAR-10's 10 and 3"),
        (
            "diffpure-resnet50",
            resnet_50_narrow,
            r"no CIFAR-10 ResNet-50 like DiffPure's \(num_classes 100 and not 10\)",
        ),
        ("meliketoy-wrn", meliketoy_wide_resnet, r"has 100 classes, .*add --set mean=\(...\) std=\(...\)"),
    ],
)
def test_another_data_set_s_network_does_not_get_cifar_10_s_statistics(
    form: str, forward: Callable[..., Tensor], message: str, tmp_path: Path
) -> None:
    original = Original()
    forward(original, images(1, (3, 32, 32)), classes=100)
    torch.save(original.state, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=message):
        _import(tmp_path / "weights.pt", form)


def test_a_mean_wants_its_deviation(tmp_path: Path) -> None:
    original = Original()
    meliketoy_wide_resnet(original, images(1, (3, 32, 32)))
    torch.save(original.state, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="mean and std belong together"):
        _import(tmp_path / "weights.pt", "meliketoy-wrn", mean=0.5)


@pytest.mark.parametrize(
    ("forward", "differing"),
    [
        (
            resnet_18_narrow,
            r"blocks \[2, 2, 2, 2\] and not \[3, 4, 6, 3\], width 8 and not 64, bottleneck False and not",
        ),
        (resnet_50_narrow, r"like DiffPure's \(width 8 and not 64\), .*choose --format kuangliu-resnet"),
    ],
)
def test_diffpure_s_resnet_50_is_no_other(forward: Forward, differing: str, tmp_path: Path) -> None:
    original = Original()
    forward(original, images(1, (3, 32, 32)))
    torch.save(_parallel(original.state), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=differing):
        _import(tmp_path / "weights.pt", "diffpure-resnet50")


def test_the_sizes_asked_for_are_the_published_ones() -> None:
    assert wide_resnets.SIZES == {"robustbench-wrn": (28, 10), "diffpure-wrn": (70, 16)}
    with torch.device("meta"):
        network = CifarResNet(**cifar_nets.RESNET50)
    assert sum(parameter.numel() for parameter in network.parameters()) == 23_520_842


def test_a_shufflenet_of_unknown_width_is_refused(tmp_path: Path) -> None:
    original = Original()
    shufflenet(original, images(1, (3, 32, 32)), widths=(40, 80, 160))
    torch.save(original.state, tmp_path / "ckpt.pth")
    with pytest.raises(ValueError, match=r"has 40 channels in the first stage .*known are 48, 116, 176, 224, 244"):
        _import(tmp_path / "ckpt.pth", "kuangliu-shufflenetv2", mean=0, std=1)


@pytest.mark.parametrize("nest", [dict, lambda state: {"state_dict": state}])
def test_a_file_without_tensors_is_refused(nest: Callable[[dict[str, Tensor]], Any], tmp_path: Path) -> None:
    torch.save(nest({}), tmp_path / "Standard.pt")
    with pytest.raises(ValueError, match=r"Standard\.pt holds no tensors"):
        _import(tmp_path / "Standard.pt", "robustbench-wrn")


@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_cut_files_are_refused(kept: float, tmp_path: Path) -> None:
    original, path = Original(), tmp_path / "Standard.pt"
    trades_wide_resnet(original, images(1, (3, 32, 32)))
    torch.save(original.state, path)
    assert zipfile.is_zipfile(path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"Standard\.pt is cut short or no file of torch\.save"):
        _import(path, "robustbench-wrn")
    safe = tmp_path / "model.safetensors"
    safe.write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(ValueError, match="is damaged or no safetensors file"):
        _import(safe, "timm", name="resnet18", tag="a1_in1k")


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("robustbench-wrn", {"mean": 0}, "has no option 'mean'; it has none"),
        ("torchvision", {"name": "resnet50"}, "The format torchvision needs --set tag=VALUE"),
        ("szagoruyko-wrn", {}, "needs --set mean=VALUE and --set std=VALUE"),
        (
            "torchvision",
            {"name": "vgg11", "tag": "IMAGENET1K_V1"},
            "name is 'vgg11'; of torchvision's it may be resnet18",
        ),
        ("torchvision", {"name": "resnet50", "tag": "DEFAULT"}, "weights of resnet50 are IMAGENET1K_V1, IMAGENET1K_V2"),
        ("timm", {"name": "resnet51", "tag": "tv_in1k"}, "name is 'resnet51', which is no model of timm"),
        ("timm", {"name": "deit_small_patch16_224", "tag": "v1"}, "weights of deit_small_patch16_224 are fb_in1k"),
        ("timm", {"name": "resnet18"}, r"num_classes is missing: weights of your own need .* tag \(.*tv_in1k"),
        (
            "timm",
            {"name": "resnet18", "tag": "tv_in1k", "image_size": 32},
            "--set tag tells .* leave the other",
        ),
        ("timm", OWN | {"name": "resnet18"}, "and is not the file of this TimmClassifier"),
        ("timm", OWN | {"key": "ema"}, "holds no tensors below 'ema'; it has no such parts"),
        ("timm", OWN | {"num_classes": 0}, "--set num_classes takes a whole number"),
        ("timm", {"name": 5, "tag": "tv_in1k"}, "--set name takes a name, not 5"),
        ("timm", {"name": "resnet50", "tag": ["tv_in1k"]}, r"--set tag takes a name, not \['tv_in1k'\]"),
        ("torchvision", {"name": "resnet50", "tag": ["V1"]}, r"--set tag takes a name, not \['V1'\]"),
        ("kuangliu-resnet", {"mean": (), "std": 1}, r"mean takes a number or one a channel.*not \(\)"),
        ("kuangliu-resnet", {"mean": "grey", "std": 1}, r"mean takes a number or one a channel.*not 'grey'"),
        ("kuangliu-resnet", {"mean": 0, "std": 1}, "should hold conv1.weight with 4 dimensions, but there is none"),
        ("meliketoy-wrn", {}, r"should hold linear.weight .*holds fc.weight"),
        ("szagoruyko-wrn", {"mean": 0, "std": 1}, "holds no `params`"),
    ],
)
def test_wrong_options_are_refused(form: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.ones(10, 4)}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=message):
        _import(tmp_path / "file.pt", form, **options)
