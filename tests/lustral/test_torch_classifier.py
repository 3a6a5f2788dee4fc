"""Any module as a classifier."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lustral.describe import describe
from lustral.networks import TorchClassifier, WrappedClassifier
from tests.contracts import images

SHAPE = (1, 8, 8)


def make_network(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.Flatten(), nn.Linear(width * 36, 5))


def make_number() -> int:
    return 3


HERE = f"{__name__}.make_network"


def test_it_normalises_and_answers_as_the_module_does() -> None:
    network, x = make_network().eval(), images(4, SHAPE)
    wrapped = WrappedClassifier(network, 5, SHAPE, [0.2], [0.5])
    assert torch.equal(wrapped(x), network((x - 0.2) / 0.5))
    assert wrapped.features(x).shape == (4, 108)
    assert set(wrapped.stage_names) == {"0", "1", "2"}
    assert wrapped.activations(x, ["0"])["0"].shape == (4, 3, 6, 6)


def test_its_description_follows_weights_and_source() -> None:
    network = make_network()
    before = describe(WrappedClassifier(network, 5, SHAPE))
    assert describe(WrappedClassifier(network, 5, SHAPE)) == before
    with torch.no_grad():
        network[2].bias += 1.0
    assert describe(WrappedClassifier(network, 5, SHAPE)) != before


def test_other_answers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"returned \(4, 5\) for 4 images.*num_classes"):
        WrappedClassifier(make_network(), 6, SHAPE)(images(4, SHAPE))


@pytest.mark.parametrize("nest", [None, "state_dict", "safetensors"])
def test_a_recipe_names_a_factory_and_its_weights(tmp_path: Path, nest: str | None) -> None:
    torch.manual_seed(1)
    network, x = make_network(2).eval(), images(3, SHAPE)
    path = tmp_path / ("own.safetensors" if nest == "safetensors" else "own.pt")
    if nest == "safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save({nest: network.state_dict(), "epoch": 3} if nest else network.state_dict(), path)
    made = TorchClassifier(HERE, 5, SHAPE, {"width": 2}, str(path))
    assert torch.equal(made.eval()(x), network(x))
    assert describe(made)["arguments"] == {"width": 2}
    assert TorchClassifier(HERE, 5, SHAPE).weights is None
    assert TorchClassifier(HERE, 5, SHAPE, weights="factory").weights == "factory"
    with pytest.raises(ValueError, match="is not of this Sequential: it has another"):
        TorchClassifier(HERE, 5, SHAPE, {"width": 3}, str(path))


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        ("nowhere.at_all", {}, "cannot be imported"),
        ("make_network", {}, "cannot be imported"),
        (HERE, {"depth": 3}, "does not take"),
        (f"{__name__}.make_number", {}, "returned a int"),
    ],
)
def test_a_wrong_factory_is_told(factory: str, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TorchClassifier(factory, 5, SHAPE, arguments)


def test_missing_weights_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TorchClassifier(HERE, 5, SHAPE, weights=str(tmp_path / "none.pt"))
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"lacks 0\.bias"):
        TorchClassifier(HERE, 5, SHAPE, weights=str(tmp_path / "other.pt"))
