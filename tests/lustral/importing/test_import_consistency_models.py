"""OpenAI's consistency_models: the imported function is the published one, with a class given, left out or never
there."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lustral.networks import ADMDenoiser, load_network
from lustral.networks.importing import FORMATS
from lustral.networks.importing.adm_layout import build
from lustral.networks.importing.command import import_weights
from lustral.networks.importing.consistency_models import _rules
from lustral.networks.weights import read_weights
from tests.contracts import generator, relative_error
from tests.lustral.importing.unet_originals import OriginalUNet, adm_unet

FORM = "consistency-models"
UNET = partial(adm_unet, base=32, multipliers=(1, 2), blocks=2, attends=(False, True), outputs=3, legacy=False, taps=2)
CLASSES = 5
SIZES = {"image_size": 16, "head_width": 16}
SIGMAS = torch.tensor([0.01, 0.6, 75.0], dtype=torch.float64)


def _states() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=generator(1))


def _file(folder: Path, classes: int = 0, **changes: Any) -> tuple[OriginalUNet, Path]:
    """An original, and its state dict as the authors save it."""
    original = OriginalUNet()
    UNET(original, _states()[:1], torch.zeros(1), classes=classes, **changes)
    torch.save(original.state, folder / "cd_imagenet64.pt")
    return original, folder / "cd_imagenet64.pt"


@pytest.mark.parametrize(("preconditioning", "shift"), [("consistency", 0.002), ("edm", 0.0)])
@pytest.mark.parametrize(
    ("classes", "options", "given"),
    [
        (CLASSES, {"label": 3}, 3),
        (CLASSES, {"label": 0}, 0),
        (CLASSES, {"label": "unconditional"}, None),
        (0, {}, None),
    ],
    ids=["class 3", "class 0", "left out", "never there"],
)
def test_the_imported_function_is_the_published_one(
    preconditioning: str, shift: float, classes: int, options: dict[str, Any], given: int | None, tmp_path: Path
) -> None:
    original, source = _file(tmp_path, classes)
    target = tmp_path / "weights.safetensors"
    network = load_network(import_weights(FORM, source, target, preconditioning=preconditioning, **SIZES, **options))
    assert isinstance(network, ADMDenoiser)
    x, s = _states(), SIGMAS[:, None, None, None]
    with torch.no_grad():
        into = (x / (s**2 + 0.25).sqrt()).float()
        out = UNET(original, into, (250 * SIGMAS.log()).float(), classes=classes, given=given)
        expected = 0.25 / ((s - shift) ** 2 + 0.25) * x + 0.5 * (s - shift) / (s**2 + 0.25).sqrt() * out
        found = network.eval()(x, network.schedule.time(SIGMAS))
    for row in range(3):
        assert relative_error(found[row], expected[row]) < 1e-5
    record, _ = read_weights(target)
    assert record["notes"].get("label") == (str(options["label"]) if options else None)


def test_another_class_is_another_function(tmp_path: Path) -> None:
    source, x, t = _file(tmp_path, CLASSES)[1], _states(), torch.tensor(500.0)
    load = partial(FORMATS[FORM].load, source, preconditioning="consistency", **SIZES)
    with torch.no_grad():
        found = [load(label=label)(x, t) for label in (0, 4, "unconditional")]
    for i in range(3):
        assert relative_error(found[i], found[i - 1]) > 0.01


@pytest.mark.parametrize(("classes", "parameters"), [(1000, 295_899_267), (0, 295_131_267)])
def test_full_size(classes: int, parameters: int) -> None:
    """Names and shapes of the published file of ImageNet-64 (and without its classes), all of which have a place."""
    with torch.device("meta"):
        original = OriginalUNet("meta")
        x, sizes = torch.empty(1, 3, 64, 64), {"base": 192, "multipliers": (1, 2, 3, 4), "blocks": 3, "head_width": 64}
        attends = (False, True, True, True)
        adm_unet(original, x, torch.empty(1), **sizes, attends=attends, outputs=3, taps=2, classes=classes)
        assert sum(tensor.numel() for tensor in original.state.values()) == parameters
        network = build(original.state, "a file", 64, {"head_width": 64, "preconditioning": "consistency"})
    made = {}
    for r in _rules(network, classes > 0, row=7 if classes else None):
        result = r.make(*(original.state.pop(source) for source in r.sources))
        made |= zip(r.targets, (result,) if isinstance(result, Tensor) else result, strict=True)
    assert not original.state
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert {name: tensor.shape for name, tensor in made.items()} == expected


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (
            CLASSES,
            {},
            r"class-conditional .*add --set label=N \(0 ... 4\) .*or --set label=unconditional .*not trained for",
        ),
        (CLASSES, {"label": 5}, "--set label takes a class from 0 to 4, or unconditional, not 5"),
        (CLASSES, {"label": -1}, "--set label takes a class from 0 to 4, or unconditional, not -1"),
        (CLASSES, {"label": True}, "not True"),
        (CLASSES, {"label": "cat"}, "not 'cat'"),
        (CLASSES, {"label": None}, "class-conditional"),
        (0, {"label": 3}, "has no classes .label_emb.weight.: leave --set label=3 out"),
        (0, {"label": "unconditional"}, "leave --set label=unconditional out"),
        (0, {"preconditioning": "linear"}, "preconditioning is 'linear'; it may be consistency, edm"),
    ],
)
def test_impossible_options_are_refused(classes: int, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    _, source = _file(tmp_path, classes)
    with pytest.raises(ValueError, match=message) as refusal:
        import_weights(FORM, source, tmp_path / "w.safetensors", **{"preconditioning": "edm", **SIZES, **options})
    assert "\n" not in str(refusal.value)


def test_teacher_and_pupil_must_be_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"The format {FORM} needs --set preconditioning=VALUE"):
        import_weights(FORM, _file(tmp_path)[1], tmp_path / "w.safetensors", **SIZES)


def test_networks_of_other_codes_are_refused(tmp_path: Path) -> None:
    def refused(message: str, state: dict[str, Tensor]) -> None:
        torch.save(state, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=message):
            FORMATS[FORM].load(tmp_path / "other.pt", preconditioning="consistency", label=3, **SIZES)

    refused("has learned a variance, which consistency_models does not", _file(tmp_path, CLASSES, outputs=6)[0].state)
    state = _file(tmp_path, CLASSES)[0].state
    refused(
        "adds the time without scaling by it, as OpenAI's LSUN models",
        {name: t.chunk(2)[0].clone() if ".emb_layers." in name else t for name, t in state.items()},
    )
    refused(r"has 9 numbers a class .*where the time has 128", state | {"label_emb.weight": torch.zeros(5, 9)})
    refused("NaN or Inf", state | {"label_emb.weight": torch.full((5, 128), float("nan"))})
    refused(r"1 missing \(time_embed.2.bias\)", {n: t for n, t in state.items() if n != "time_embed.2.bias"})
