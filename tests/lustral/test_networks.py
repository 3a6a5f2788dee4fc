"""Networks: published sizes, conventions, and weights files that alone rebuild them or say why not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lustral.describe import arguments, describe, weights_sha256
from lustral.diffusion import Denoiser
from lustral.networks import (
    Classifier,
    TimmClassifier,
    UNetDenoiser,
    WideResNet,
    load_classifier,
    load_denoiser,
    load_network,
    save_network,
)
from tests.closed_form import alpha_bar
from tests.contracts import generator, images, randomise

UNET = {
    "image_size": 8,
    "channels": 1,
    "widths": (8, 16),
    "blocks": 1,
    "attention": (False, True),
    "norm_groups": 4,
}


def _wide_resnet(weights: str | None = None, **changes: object) -> WideResNet:
    options = {
        "depth": 10,
        "width": 1,
        "channels": 1,
        "image_size": 8,
        "mean": (0.3,),
        "std": (0.5,),
    } | changes
    return WideResNet(**options, weights=weights)  # type: ignore[arg-type]


def _unet(weights: str | None = None, **changes: object) -> UNetDenoiser:
    return UNetDenoiser(**(UNET | changes), weights=weights)  # type: ignore[arg-type]


def _timm(weights: str | None = None) -> TimmClassifier:
    return TimmClassifier("resnet10t", num_classes=5, image_size=32, weights=weights)


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "WideResNet": _wide_resnet,
    "UNetDenoiser": _unet,
    "UNetDenoiser_vp": lambda weights=None: _unet(weights, preconditioning="vp", head_width=8, dropout=0.0),
    "TimmClassifier": _timm,
}


@pytest.fixture(params=BUILDERS)
def builder(request: pytest.FixtureRequest) -> Callable[..., nn.Module]:
    return BUILDERS[request.param]


def _answer(network: nn.Module) -> Tensor:
    x = images(3, network.image_shape)  # type: ignore[arg-type]
    network.eval()
    with torch.no_grad():
        return network(x, torch.tensor([100.0, 5.0, 900.0])) if isinstance(network, Denoiser) else network(x)


# Sizes and conventions ------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (lambda: WideResNet(28, 10), 36_479_194),
        (lambda: WideResNet(70, 16), 266_796_506),
        (lambda: UNetDenoiser(), 35_746_307),
    ],
    ids=["wrn-28-10", "wrn-70-16", "ddpm-cifar10"],
)
def test_published_sizes(build: Callable[[], nn.Module], count: int) -> None:
    with torch.device("meta"):
        network = build()
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_answers_have_the_promised_shapes(builder: Callable[..., nn.Module]) -> None:
    network = builder()
    answer = _answer(network)
    if isinstance(network, Classifier):
        expected = (3, network.num_classes)
    else:
        assert isinstance(network, Denoiser)
        expected = (3, *network.image_shape)
    assert answer.shape == expected
    assert answer.dtype == torch.float32
    assert answer.isfinite().all()


def test_rows_do_not_look_at_each_other(builder: Callable[..., nn.Module]) -> None:
    network = builder().eval()
    x, t = images(5, network.image_shape), torch.tensor([1.0, 10.0, 100.0, 500.0, 999.0])  # type: ignore[arg-type]
    call = network if isinstance(network, Classifier) else lambda x: network(x, t[: len(x)])
    with torch.no_grad():
        torch.testing.assert_close(call(x)[:2], call(x[:2]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("schedule", ["vp", "linear"])
def test_a_noise_predictor_is_a_posterior_mean(schedule: str) -> None:
    """(x_t - sigma eps) / alpha, at the label that the network was trained with; noise() gives eps back."""
    denoiser = _unet(preconditioning=schedule).eval()
    randomise(denoiser, 0.1)
    x, t = images(3, (1, 8, 8)), torch.tensor([1.0, 100.0, 1000.0])
    label = t - 1 if schedule == "linear" else 0.999 * t
    with torch.no_grad():
        eps = denoiser.network(x, label).sample
        for k in range(3):
            abar = alpha_bar({"linear": "discrete"}.get(schedule, schedule), float(t[k]))
            expected = (x[k] - (1 - abar) ** 0.5 * eps[k]) / abar**0.5
            torch.testing.assert_close(denoiser(x, t)[k], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(denoiser(x[k : k + 1], t[k])[0], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(denoiser.noise(x, t), eps, rtol=1e-3, atol=1e-4)


def test_the_time_matters_to_a_denoiser() -> None:
    denoiser = _unet(preconditioning="vp").eval()
    randomise(denoiser, 0.1)
    x = images(1, (1, 8, 8))
    with torch.no_grad():
        eps = [denoiser.noise(x, torch.tensor(t)) for t in (10.0, 10.5, 500.0)]
    assert not torch.equal(eps[0], eps[1]), "fractional times are rounded"
    assert not torch.equal(eps[0], eps[2])


def test_a_classifier_normalises_inside() -> None:
    raw, normalised = _wide_resnet(mean=(0.0,), std=(1.0,)), _wide_resnet()
    normalised.load_state_dict(raw.state_dict())
    x = images(3, (1, 8, 8))
    with torch.no_grad():
        torch.testing.assert_close(normalised.eval()(x), raw.eval()((x - 0.3) / 0.5))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: _wide_resnet(depth=11), r"depth is 11; a WideResNet's is 6 n \+ 4"),
        (lambda: _wide_resnet(num_classes=1), "num_classes is 1; a classifier needs at least 2"),
        (lambda: _wide_resnet(mean=(0.1, 0.2)), "mean has 2 values for 1 channels"),
        (lambda: _wide_resnet(std=(0.0,)), "std is .*every value must be positive"),
        (lambda: _unet(preconditioning="cosine"), "preconditioning is 'cosine'; a UNetDenoiser's may be linear or vp"),
        (lambda: _unet(attention=(True,)), "attention has 1 entries for 2 widths"),
        (lambda: _unet(image_size=9), "image_size 9 cannot be halved 1 times"),
        (lambda: TimmClassifier("resnet51"), "timm has no model 'resnet51'; names like it: "),
        (lambda: TimmClassifier("no_such_thing"), "timm has no model 'no_such_thing'"),
    ],
)
def test_impossible_networks_are_refused(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# Weights files ------------------------------------------------------------


def test_a_weights_file_alone_rebuilds_its_network(builder: Callable[..., nn.Module], tmp_path: Path) -> None:
    network = builder()
    randomise(network, 0.1)
    for name, buffer in network.named_buffers():
        if "running_var" in name:  # statistics are part of a network, too
            buffer.fill_(1.5)
    path = save_network(network, tmp_path / "deep" / "weights.safetensors", {"recipe": "a test"})
    assert [file.name for file in path.parent.iterdir()] == ["weights.safetensors"]
    rebuilt = load_network(path)
    assert type(rebuilt) is type(network)
    assert arguments(rebuilt, ("weights",)) == arguments(network, ("weights",))
    assert torch.equal(_answer(rebuilt), _answer(network))
    assert torch.equal(_answer(builder(weights=str(path))), _answer(network))
    assert rebuilt.weights == str(path)
    assert weights_sha256(rebuilt) == weights_sha256(network)


def test_saving_over_a_file_replaces_it(tmp_path: Path) -> None:
    first, second = _wide_resnet(), _wide_resnet()
    randomise(second, 0.1)
    path = save_network(first, tmp_path / "weights.safetensors")
    save_network(second, path)
    assert weights_sha256(load_network(path)) == weights_sha256(second) != weights_sha256(first)


@pytest.mark.parametrize("name", ["file/weights.safetensors", "folder", f"{250 * 'w'}.safetensors"])
def test_a_place_that_cannot_be_written_is_told_in_a_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")  # a folder below a file: unwritable for root too
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"^The weights file .* cannot be written .*choose another\.$"):
        save_network(_wide_resnet(), tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_loaders_ask_for_the_right_kind(tmp_path: Path) -> None:
    classifier = str(save_network(_wide_resnet(), tmp_path / "classifier.safetensors"))
    denoiser = str(save_network(_unet(), tmp_path / "denoiser.safetensors"))
    assert isinstance(load_classifier(classifier), WideResNet)
    assert isinstance(load_denoiser(denoiser), UNetDenoiser)
    with pytest.raises(ValueError, match="holds a UNetDenoiser, which is no Classifier"):
        load_classifier(denoiser)
    with pytest.raises(ValueError, match="holds a WideResNet, which is no Denoiser"):
        load_denoiser(classifier)


def test_missing_weights_are_named_with_the_remedy(tmp_path: Path) -> None:
    for load in (load_network, lambda path: _wide_resnet(str(path))):
        with pytest.raises(FileNotFoundError, match=r"no weights file .*gone\.safetensors.*train it .*cli.py import"):
            load(tmp_path / "gone.safetensors")
    with pytest.raises(FileNotFoundError, match="no weights file"):
        load_network(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 200, 0.5, -1])
def test_truncated_weights_are_refused_by_name(kept: float, tmp_path: Path) -> None:
    path = save_network(_wide_resnet(), tmp_path / "weights.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=r"weights\.safetensors is damaged or no safetensors file.*train it again"):
        load_network(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        load_network(path)


def test_weights_that_lustral_did_not_write_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.ones(2)}, path, metadata=metadata)
        with pytest.raises(ValueError, match="was not written by Lustral; import it"):
            load_network(path)


def test_weights_of_another_network_are_refused_with_the_difference(tmp_path: Path) -> None:
    path = str(save_network(_wide_resnet(), tmp_path / "weights.safetensors"))
    with pytest.raises(
        ValueError, match=r"another WideResNet: depth = 10 there and 16 here; width = 1 there and 2 here"
    ):
        _wide_resnet(path, depth=16, width=2)
    with pytest.raises(ValueError, match=r"another WideResNet: mean = \[0\.3\] there and \[0\.4\] here"):
        _wide_resnet(path, mean=(0.4,))  # the tensors would fit, and every answer would be wrong
    with pytest.raises(ValueError, match="the weights of a WideResNet, not of a UNetDenoiser"):
        _unet(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    network = _wide_resnet()
    with torch.no_grad():
        network.head.weight[0, 0] = value
    path = save_network(network, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"holds NaN or Inf in head\.weight \(1 tensors in all\)"):
        load_network(path)


def _write(path: Path, record: object, state: dict[str, Tensor]) -> Path:
    save_file(state, path, metadata={"lustral": json.dumps(record)})
    return path


@pytest.mark.parametrize("name", ["Sequential", "torch.nn.Linear", "os.system", ""])
def test_only_known_builders_are_built(name: str, tmp_path: Path) -> None:
    """Opening a file runs nobody's code: a builder is a name from a closed list, never a class path."""
    record = {"schema": 1, "builder": name, "arguments": {}, "notes": {}}
    path = _write(tmp_path / "weights.safetensors", record, {"weight": torch.ones(2)})
    with pytest.raises(ValueError, match=r"names the network .*; known are .*UNetDenoiser"):
        load_network(path)


def test_missing_unknown_and_reshaped_tensors_are_counted(tmp_path: Path) -> None:
    network = _wide_resnet()
    record = {
        "schema": 1,
        "builder": "WideResNet",
        "arguments": arguments(network, ("weights",)),
        "notes": {},
    }
    state = network.state_dict()
    del state["head.bias"]
    state["extra"] = torch.ones(1)
    state["head.weight"] = torch.ones(3, 3)
    path = _write(tmp_path / "weights.safetensors", record, state)
    with pytest.raises(
        ValueError, match=r"1 tensors missing \['head.bias'\], 1 unknown \['extra'\], 1 of another shape"
    ):
        load_network(path)


# Identity ------------------------------------------------------------


def test_a_description_follows_the_weights_and_not_their_path(tmp_path: Path) -> None:
    network = _wide_resnet()
    randomise(network, 0.1)
    first = load_network(save_network(network, tmp_path / "one.safetensors"))
    second = load_network(save_network(network, tmp_path / "elsewhere" / "two.safetensors"))
    assert describe(first) == describe(second)
    assert json.loads(json.dumps(describe(first))) == describe(first)
    assert describe(first)["class"] == "WideResNet"
    assert describe(first)["depth"] == 10
    assert "weights" not in describe(first)
    with torch.no_grad():
        second.get_parameter("head.bias")[0] += 1e-6
    assert describe(first) != describe(second)


def test_the_hash_covers_names_shapes_types_and_buffers() -> None:
    def module(**tensors: Tensor) -> nn.Module:
        made = nn.Module()
        for name, tensor in tensors.items():
            made.register_buffer(name, tensor)
        return made

    ones = torch.ones(4)
    different = [
        module(a=ones),
        module(b=ones),
        module(a=ones.view(2, 2)),
        module(a=ones.double()),
        module(a=ones.view(torch.int32)),
        module(a=-ones),
    ]
    assert len({weights_sha256(made) for made in different}) == len(different)
    strided = torch.randn(4, 4, generator=generator())
    assert weights_sha256(module(a=strided.T)) == weights_sha256(module(a=strided.T.contiguous()))


def test_a_component_that_forgets_an_argument_is_refused() -> None:
    class Forgetful:
        def __init__(self, kept: int, lost: int) -> None:
            self.kept = kept

    with pytest.raises(ValueError, match=r"does not keep its constructor argument\(s\) lost"):
        describe(Forgetful(1, 2))
