"""Adversarially trained classifiers: RobustBench's by name, and the robustness library's checkpoints."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from lustral.networks import Classifier, load_classifier
from lustral.networks.importing.command import import_weights
from lustral.networks.importing.robustbench import AUGUSTIN, CIFAR10, ENGSTROM, IMAGENET, RAW, ZOO
from lustral.networks.weights import architecture, read_weights
from tests.contracts import generator, images
from tests.lustral.importing.classifier_originals import (
    Original,
    deepmind_preact_resnet,
    deepmind_wide_resnet,
    fast_preact_resnet,
    resnet_18_narrow,
    resnet_50_narrow,
    rice_preact_resnet,
    trades_wide_resnet,
)

State = Mapping[str, Tensor]
LINF = {"dataset": "cifar10", "threat_model": "Linf"}
L2 = {"dataset": "cifar10", "threat_model": "L2"}


def _with(state: State, **entries: tuple[float, ...]) -> dict[str, Tensor]:
    return {**state, **{name: torch.tensor(values)[None, :, None, None] for name, values in entries.items()}}


def _nested(state: State) -> dict[str, Any]:
    """A whole training's file: the options are an object, which is not needed and not made."""
    tensors = {f"module.{name}": tensor for name, tensor in state.items()}
    return {"state_dict": tensors, "args": argparse.Namespace(lr=0.1), "epoch": 3}


def _sub_block(state: State) -> dict[str, Tensor]:
    dead = {f"sub_{name}": tensor + 1 for name, tensor in state.items() if name.startswith("block1.")}
    return {**state, **dead}


@dataclass(frozen=True)
class Model:
    """The zoo's options, the original, its (mean, std), the form of its file, and the size of this small one."""

    options: dict[str, str]
    forward: Callable[[Original, Tensor], Tensor]
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    file: Callable[[State], Any] = dict
    size: tuple[int, int] | None = None


def _with_mean(state: State) -> dict[str, Tensor]:
    return _with(state, mean=CIFAR10[0], std=CIFAR10[1])


def _wrapped_with_mu(state: State) -> dict[str, Tensor]:
    return {f"model.{n}": tensor for n, tensor in _with(state, mu=CIFAR10[0], sigma=CIFAR10[1]).items()}


def _nested_with_sub_block(state: State) -> dict[str, Any]:
    return _nested(_sub_block(state))


SMALL = (16, 2)
CASES = {
    "Pang2022Robustness_WRN28_10": Model(LINF, deepmind_wide_resnet, CIFAR10, _with_mean, SMALL),
    "Gowal2020Uncovering_extra": Model(L2, deepmind_wide_resnet, CIFAR10, dict, SMALL),
    "Rebuffi2021Fixing_R18_ddpm": Model(LINF, deepmind_preact_resnet, CIFAR10),
    "Wong2020Fast": Model(LINF, fast_preact_resnet, CIFAR10, _nested),
    "Rice2020Overfitting": Model(L2, rice_preact_resnet, CIFAR10),
    "Zhang2019Theoretically": Model(LINF, trades_wide_resnet, RAW, _nested_with_sub_block, SMALL),
    "Augustin2020Adversarial_34_10_extra": Model(L2, trades_wide_resnet, AUGUSTIN, dict, SMALL),
    "Chen2020Efficient": Model(LINF, trades_wide_resnet, CIFAR10, _wrapped_with_mu, SMALL),
    "Sehwag2021Proxy_R18": Model(L2, resnet_18_narrow, RAW),
    "Engstrom2019Robustness": Model(LINF, resnet_50_narrow, ENGSTROM, _nested),
}


def _normalised(x: Tensor, normalisation: Any) -> Tensor:
    mean, std = (torch.tensor(values)[None, :, None, None] for values in normalisation)
    return (x - mean) / std


def _agrees(path: Path, x: Tensor, expected: Tensor) -> Classifier:
    network = load_classifier(str(path)).eval()
    with torch.no_grad():
        error = (network(x) - expected).abs().max() / expected.abs().max()
    assert float(error) < 1e-6
    return network


def _original(case: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Original, Tensor, Tensor]:
    """Its small file's tensors, images and logits; the zoo is told of the small size."""
    model = CASES[case]
    known = ZOO[model.options["dataset"], model.options["threat_model"]]
    if model.size is not None:
        monkeypatch.setitem(known, case, known[case]._replace(size=model.size))
    original, x = Original(), images(2, (3, 32, 32))
    return original, x, model.forward(original, _normalised(x, model.normalisation))


@pytest.mark.parametrize("case", CASES)
def test_a_model_of_the_zoo_is_the_original(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CASES[case]
    original, x, expected = _original(case, monkeypatch)
    torch.save(model.file(original.state), tmp_path / "s.pt")
    path = import_weights("robustbench", tmp_path / "s.pt", tmp_path / "w.safetensors", name=case, **model.options)
    network = _agrees(path, x, expected)
    assert (tuple(network.mean), tuple(network.std)) == model.normalisation
    assert network.num_classes == 10


def test_padding_and_activation_are_other_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forms of a PreActResNet have the same tensors but for one: the wrong one could pass unseen."""
    case = "Rice2020Overfitting"
    original, x, expected = _original(case, monkeypatch)
    torch.save(original.state, tmp_path / "s.pt")
    path = import_weights("robustbench", tmp_path / "s.pt", tmp_path / "w.safetensors", name=case, **L2)
    network = load_classifier(str(path))
    for option in ({"shortcut": "raw"}, {"activation": "silu"}):
        other = type(network)(**(architecture(network)["arguments"] | option))
        other.load_state_dict(network.state_dict())
        with torch.no_grad():
            assert float((other.eval()(x) - expected).abs().max()) > 0.01 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        (
            "Pang2022Robustness_WRN28_10",
            lambda s: _with(s, mean=(0.5, 0.5, 0.5)),
            r"says mean = \[0\.5, .*, but Pang",
        ),
        ("Pang2022Robustness_WRN28_10", lambda s: s | {"extra": torch.ones(1)}, r"1 unknown \(extra\)"),
        ("Augustin2020Adversarial_34_10_extra", lambda s: _with(s, sigma=CIFAR10[1]), "says sigma = "),
        (
            "Zhang2019Theoretically",
            lambda s: s | {"sub_block1.layer.0.bn1.weight": torch.ones(3)},
            "is no copy of block1",
        ),
        ("Rice2020Overfitting", lambda s: {n: t for n, t in s.items() if not n.startswith("bn.")}, "5 missing"),
        ("Wong2020Fast", lambda s: s | {"bn.weight": torch.ones(64)}, r"1 unknown \(bn.weight\)"),
    ],
)
def test_other_files_are_refused(
    case: str, change: Callable[[State], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, _, _ = _original(case, monkeypatch)
    torch.save(change(original.state), tmp_path / "s.pt")
    with pytest.raises(ValueError, match=message):
        import_weights("robustbench", tmp_path / "s.pt", tmp_path / "w.safetensors", name=case, **CASES[case].options)
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (LINF | {"name": "Rebuffi2021Fixing_70_16_cutmix_extra"}, "holds a WRN-16-2, but .* is a WRN-70-16"),
        (LINF | {"name": "Rebuffi2021"}, "name is 'Rebuffi2021'; of cifar10, Linf it may be Carmon2019Unlabeled, "),
        (LINF | {"name": "Standard"}, "name is 'Standard'"),
        (
            {"name": "Wong2020Fast", "dataset": "cifar100", "threat_model": "Linf"},
            "they may be dataset=cifar10 ",
        ),
        (LINF | {"name": "Zhang2019Theoretically"}, "block1.layer.0.conv1.weight .* but there is none"),
        ({"name": 7, **LINF}, "--set name takes a name, not 7"),
    ],
)
def test_a_wrong_name_is_told(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    original = Original()
    deepmind_wide_resnet(original, images(1, (3, 32, 32)))
    torch.save(original.state, tmp_path / "s.pt")
    with pytest.raises(ValueError, match=message):
        import_weights("robustbench", tmp_path / "s.pt", tmp_path / "w.safetensors", **options)


def test_imagenets_models_come_wrapped_and_nested(tmp_path: Path) -> None:
    theirs, x = _random(torchvision.models.resnet18()), images(1, (3, 64, 64))
    wrapped = {f"model.{name}": tensor for name, tensor in theirs.state_dict().items()}
    mean, std = (torch.tensor(values)[None, :, None, None] for values in IMAGENET)
    torch.save(_nested(wrapped | {"normalize.mean": mean, "normalize.std": std}), tmp_path / "s.pt")
    options = {"name": "Salman2020Do_R18", "dataset": "imagenet", "threat_model": "Linf"}
    path = import_weights("robustbench", tmp_path / "s.pt", tmp_path / "w.safetensors", **options)
    with torch.no_grad():
        _agrees(path, x, theirs(_normalised(x, IMAGENET)))


def _random(network: nn.Module) -> nn.Module:
    source = generator()
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=source))
        elif tensor.ndim:
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 4
            tensor.copy_(fan_in**-0.5 * torch.randn(tensor.shape, generator=source) + (tensor.ndim == 1))
    return network.eval()


# The robustness library -----------------------------------------------------------------------


def _attacker_model(state: State, normalisation: Any) -> dict[str, Any]:
    """What its trainer saves: the network twice, once to ask and once to attack, each with its normaliser."""
    norm = {f"new_{n}": torch.tensor(v)[:, None, None] for n, v in zip(("mean", "std"), normalisation, strict=True)}
    parts = {"normalizer": norm, "model": state, "attacker.normalize": norm, "attacker.model": state}
    tensors = {f"module.{part}.{name}": tensor for part, held in parts.items() for name, tensor in held.items()}
    return {"model": tensors, "optimizer": {}, "schedule": argparse.Namespace(last_epoch=3), "epoch": 3, "amp": "N/A"}


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_of_the_robustness_library_is_one_network(legacy: bool, tmp_path: Path) -> None:
    original, x = Original(), images(2, (3, 32, 32))
    expected = resnet_50_narrow(original, _normalised(x, ENGSTROM))
    content = _attacker_model(original.state, ENGSTROM)
    torch.save(content, tmp_path / "cifar.pt", _use_new_zipfile_serialization=not legacy)
    path = import_weights("robustness", tmp_path / "cifar.pt", tmp_path / "w.safetensors")
    network = _agrees(path, x, expected)
    assert (tuple(network.mean), tuple(network.std)) == ENGSTROM


def test_its_imagenet_resnets_tell_their_name(tmp_path: Path) -> None:
    """A ResNet-34 has every tensor of a ResNet-18, and more."""
    with torch.device("meta"):
        empty = torchvision.models.resnet34(num_classes=9).state_dict()
    state = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in empty.items()}
    torch.save(_attacker_model(state, IMAGENET), tmp_path / "r.ckpt")
    path = import_weights("robustness", tmp_path / "r.ckpt", tmp_path / "w.safetensors")
    built = read_weights(path)[0]["arguments"]
    assert (built["name"], built["num_classes"], built["mean"]) == ("resnet34", 9, list(IMAGENET[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {"module.attacker.model.conv1.weight": torch.ones(4, 3, 3, 3)}, "two different networks"),
        (lambda tensors: {"module.normalizer.new_std": torch.ones(3, 1, 1)}, "two different networks"),
        (lambda tensors: {"module.extra": torch.ones(1)}, "holds no AttackerModel"),
    ],
)
def test_a_strange_one_is_refused(change: Callable[[State], State], message: str, tmp_path: Path) -> None:
    original = Original()
    resnet_18_narrow(original, images(1, (3, 32, 32)))
    content = _attacker_model(original.state, ENGSTROM)
    content["model"] |= change(content["model"])
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=message):
        import_weights("robustness", tmp_path / "c.pt", tmp_path / "w.safetensors")
