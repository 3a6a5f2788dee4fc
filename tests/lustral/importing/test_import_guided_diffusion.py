"""guided-diffusion and improved-diffusion: the imported function is the published one, or a sentence says why not."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lustral.networks import ADMDenoiser, load_network
from lustral.networks.importing import FORMATS
from lustral.networks.importing.adm_layout import build, rules
from lustral.networks.importing.command import import_weights
from lustral.networks.importing.guided_diffusion import is_published
from lustral.networks.weights import read_weights
from tests.contracts import generator, relative_error
from tests.lustral.importing.unet_originals import OriginalUNet, adm_unet

Forward = Callable[[OriginalUNet, Tensor, Tensor], Tensor]

# Format, original, options of --set, and what the label at level k is times k - 1.
GUIDED = partial(adm_unet, base=32, multipliers=(1, 2), blocks=2, attends=(False, True))
IMPROVED = partial(
    adm_unet, base=32, multipliers=(1, 2, 3), blocks=1, attends=(False, True, True), heads=4, residual=False
)
CASES: dict[str, tuple[str, Forward, dict[str, Any], float]] = {
    "guided": ("guided-diffusion", GUIDED, {"image_size": 16, "head_width": 16, "preconditioning": "linear"}, 1.0),
    "guided, new order": (
        "guided-diffusion",
        partial(GUIDED, legacy=False),
        {"image_size": 16, "head_width": 16, "attention_order": "new", "preconditioning": "linear"},
        1.0,
    ),
    "guided, cosine": (
        "guided-diffusion",
        partial(GUIDED, blocks=1),
        {"image_size": 16, "head_width": 16, "preconditioning": "cosine"},
        0.25,
    ),
    "guided, attention everywhere, no variance": (
        "guided-diffusion",
        partial(GUIDED, blocks=1, attends=(True, True), outputs=3, legacy=False, taps=2),
        {"image_size": 16, "head_width": 16, "attention_order": "new", "preconditioning": "linear"},
        1.0,
    ),
    "guided, one resolution": (
        "guided-diffusion",
        partial(GUIDED, multipliers=(1,), attends=(True,)),
        {"image_size": 8, "head_width": 16, "preconditioning": "linear"},
        1.0,
    ),
    "improved": ("improved-diffusion", IMPROVED, {"image_size": 16}, 0.25),
    "improved, linear": (
        "improved-diffusion",
        partial(IMPROVED, heads=2),
        {"image_size": 16, "num_heads": 2, "preconditioning": "linear"},
        1.0,
    ),
}
LEVELS = torch.tensor([1.0, 470.0, 999.0, 1000.0])


def _states(options: dict[str, Any]) -> Tensor:
    size = options["image_size"]
    return torch.randn(len(LEVELS), 3, size, size, generator=generator(1))


def _written(forward: Forward, options: dict[str, Any]) -> OriginalUNet:
    """An original that has been called once, so that it has all its tensors."""
    original = OriginalUNet()
    forward(original, _states(options)[:1], LEVELS[:1])
    return original


def _imported(case: str, path: Path, change: Callable[[dict[str, Tensor]], object] = lambda state: None) -> ADMDenoiser:
    """The way a user takes: a file in the very format, ``import``, and the weights file that comes of it."""
    form, forward, options, _ = CASES[case]
    state = _written(forward, options).state
    change(state)
    torch.save(state, path / "original.pt")
    weights = import_weights(form, path / "original.pt", path / "weights.safetensors", **options)
    network = load_network(weights)
    assert isinstance(network, ADMDenoiser)
    return network.eval()


@pytest.mark.parametrize("case", CASES)
def test_the_imported_function_is_the_published_one(case: str, tmp_path: Path) -> None:
    _, forward, options, unit = CASES[case]
    denoiser = _imported(case, tmp_path)
    x, t = _states(options), LEVELS * unit
    with torch.no_grad():
        out = forward(_written(forward, options), x, (LEVELS - 1) * unit)
        eps = out[:, :3]
        assert relative_error(denoiser.noise(x, t), eps) < 1e-5
        alpha, sigma = (f(t)[:, None, None, None] for f in (denoiser.schedule.alpha, denoiser.schedule.sigma))
        expected = (x - sigma * eps) / alpha  # the last levels are far larger than the first: one by one
        found = denoiser(x, t)
        for k in range(len(LEVELS)):
            assert relative_error(found[k], expected[k]) < 1e-5
        assert denoiser.learns_variance == (out.shape[1] == 6)
        if denoiser.learns_variance:
            mean, v = denoiser.mean_and_variance(x, t)
            assert torch.equal(mean, found)
            assert relative_error(v, (out[:, 3:] + 1) / 2) < 1e-5


@pytest.mark.parametrize("case", ["guided", "guided, new order"])
def test_the_wrong_order_of_queries_keys_and_values_is_another_function(case: str, tmp_path: Path) -> None:
    """Both orders load without complaint, so only the values tell them apart."""
    form, _, options, _ = CASES[case]
    right = _imported(case, tmp_path)
    other = {"attention_order": "legacy" if case.endswith("order") else "new"}
    path = import_weights(form, tmp_path / "original.pt", tmp_path / "wrong.safetensors", **(options | other))
    x, t = _states(options), LEVELS
    with torch.no_grad():
        assert relative_error(load_network(path).noise(x, t), right.noise(x, t)) > 0.05  # type: ignore[operator]


@pytest.mark.parametrize("case", ["guided", "guided, new order", "improved"])
def test_rows_of_queries_keys_and_values(case: str, tmp_path: Path) -> None:
    """Every row numbered: head h of query (0), key (1) or value (2) is rows (3 h + i) w ... in the legacy order, and
    rows i H w + h w ... in the new one."""

    def number(state: dict[str, Tensor]) -> None:
        name = "middle_block.1.qkv"
        rows = torch.arange(float(len(state[f"{name}.bias"])))
        state[f"{name}.bias"] = rows
        state[f"{name}.weight"] = rows[:, None, None].expand_as(state[f"{name}.weight"]).clone()

    attention: Any = _imported(case, tmp_path, number).network.mid_block.attentions[0]  # type: ignore[union-attr]
    heads, channels = attention.heads, attention.to_q.in_features
    width = channels // heads
    assert heads == (4 if case == "improved" else channels // 16)
    for i, layer in enumerate((attention.to_q, attention.to_k, attention.to_v)):
        expected = [
            float(i * channels + h * width + j if "new" in case else (3 * h + i) * width + j)
            for h in range(heads)
            for j in range(width)
        ]
        assert layer.bias.tolist() == expected
        assert layer.weight[:, 5].tolist() == expected


def test_what_the_tensors_tell(tmp_path: Path) -> None:
    _imported("improved", tmp_path)
    record, _ = read_weights(tmp_path / "weights.safetensors")
    assert record["arguments"] == {
        "image_size": 16,
        "channels": 3,
        "base_channels": 32,
        "multipliers": [1, 2, 3],
        "blocks": 1,
        "attention_sizes": [8, 4],
        "head_width": None,
        "num_heads": 4,
        "resample": "conv",
        "learned_variance": True,
        "dropout": 0.3,
        "preconditioning": "cosine",
    }
    assert record["notes"]["format"] == "improved-diffusion"
    assert record["notes"]["licence"] == "MIT"


FULL = {
    "guided-diffusion 256": (
        partial(
            adm_unet,
            base=256,
            multipliers=(1, 1, 2, 2, 4, 4),
            blocks=2,
            attends=3 * (False,) + 3 * (True,),
            head_width=64,
        ),
        256,
        {"head_width": 64},
        (566, 552_814_086),
        {},
    ),
    "improved-diffusion CIFAR-10": (
        partial(
            adm_unet,
            base=128,
            multipliers=(1, 2, 2, 2),
            blocks=3,
            attends=(False, True, True, False),
            heads=4,
            residual=False,
        ),
        32,
        {"head_width": None, "num_heads": 4, "preconditioning": "cosine", "dropout": 0.3},
        (446, 52_546_438),
        {
            "image_size": 32,
            "base_channels": 128,
            "multipliers": (1, 2, 2, 2),
            "blocks": 3,
            "attention_sizes": (16, 8),
            "head_width": None,
            "num_heads": 4,
            "resample": "conv",
            "preconditioning": "cosine",
            "dropout": 0.3,
        },
    ),
}


@pytest.mark.parametrize("name", FULL)
def test_full_size(name: str) -> None:
    """Names and shapes of the published file give the published architecture, and every tensor has its place."""
    forward, size, options, (tensors, parameters), arguments = FULL[name]
    with torch.device("meta"):
        original = OriginalUNet("meta")
        forward(original, torch.empty(1, 3, size, size), torch.empty(1))
        network = build(original.state, "a file", size, options)
        published = ADMDenoiser(**arguments)
    assert len(original.state) == tensors
    assert sum(tensor.numel() for tensor in original.state.values()) == parameters
    made = {}
    for r in rules(network, legacy=True):
        result = r.make(*(original.state.pop(source) for source in r.sources))
        made |= zip(r.targets, (result,) if isinstance(result, Tensor) else result, strict=True)
    assert not original.state
    assert _shapes(made) == _shapes(network.state_dict()) == _shapes(published.state_dict())


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


# Refusals ------------------------------------------------------------

ONCE = "input_blocks.1.0.out_layers.3.weight"


def _reshape(state: dict[str, Tensor]) -> None:
    state[ONCE] = state[ONCE][:, :, :1]


def _class_conditional(state: dict[str, Tensor]) -> None:
    state["label_emb.weight"] = torch.zeros(1000, 128)


def _without_scale(state: dict[str, Tensor]) -> None:
    for name in [name for name in state if ".emb_layers." in name]:
        state[name] = state[name].chunk(2)[0].clone()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(ONCE), rf"1 missing \({ONCE}\); 0 unknown"),
        (lambda state: state.pop("input_blocks.1.0.in_layers.2.weight"), "should hold input_blocks.1.0.in_layers.2"),
        (lambda state: state.pop("output_blocks.2.2.in_layers.0.weight"), "1 missing .output_blocks.2.2.in_layers.0"),
        (lambda state: state.update(extra=torch.zeros(2)), r"0 missing; 1 unknown \(extra\)"),
        (_reshape, r"1 of another shape \(input_blocks.1.0.out_layers.3.weight gives .* where"),
        (
            lambda state: state.update({"middle_block.1.qkv.weight": torch.zeros(190, 64, 1)}),
            r"middle_block.1.qkv.weight \(190, 64, 1\) \(cannot be rearranged",
        ),
        (lambda state: state.update({"input_blocks.1.0.in_layers.2.weight": torch.zeros(9, 32, 3, 3)}), "no multiples"),
        (_class_conditional, "class-conditional network .*import an unconditional file"),
        (_without_scale, "emb_layers.1.weight gives .* where"),
        (lambda state: state[ONCE].fill_(float("nan")), "NaN or Inf"),
        (lambda state: state.clear(), "original.pt holds no tensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_do_not_fit_are_refused(
    change: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        _imported("guided", tmp_path, change)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "weights.safetensors").exists()


def test_a_file_cut_in_half_is_refused(tmp_path: Path) -> None:
    form, forward, options, _ = CASES["guided"]
    path = tmp_path / "original.pt"
    torch.save(_written(forward, options).state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"original.pt is cut short or no file of torch.save"):
        FORMATS[form].load(path, **options)


class _Touches:
    """A pickle that makes a file when it is opened the wrong way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    path, touched = tmp_path / "original.pt", tmp_path / "touched"
    for content in ({"time_embed.0.weight": torch.zeros(2), "more": _Touches(touched)}, nn.Linear(2, 2)):
        torch.save(content, path)
        with pytest.raises(ValueError, match="could run code"):
            FORMATS["guided-diffusion"].load(path)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_order": "both"}, "attention_order is 'both'; it may be legacy, new"),
        ({"head_width": 48}, "head_width is 48; it must divide the 64 channels"),
        ({"head_width": "wide"}, "--set head_width takes a whole number from 1 on, not 'wide'"),
        ({"image_size": 15}, "image_size 15 cannot be halved 1 times"),
        ({"preconditioning": "vp"}, "preconditioning is 'vp'; here it may be linear, cosine"),
        ({"preconditioning": "consistency"}, "consistency are for --format consistency-models"),
        ({"width": 3}, "guided-diffusion has no option 'width'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    form, forward, given, _ = CASES["guided"]
    torch.save(_written(forward, given).state, tmp_path / "original.pt")
    with pytest.raises(ValueError, match=message):
        import_weights(form, tmp_path / "original.pt", tmp_path / "weights.safetensors", **(given | options))


@pytest.mark.parametrize("outputs", [6, 3])
def test_levels_that_no_tensor_tells_are_asked_for(outputs: int, tmp_path: Path) -> None:
    """Networks on linear levels, on cosine ones, and of consistency_models have the same tensors."""
    torch.save(_written(partial(GUIDED, outputs=outputs), {"image_size": 16}).state, tmp_path / "original.pt")
    with pytest.raises(ValueError, match=r"add --set preconditioning=linear or .*choose --format consistency-models"):
        FORMATS["guided-diffusion"].load(tmp_path / "original.pt", image_size=16, head_width=16)


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({}, True),
        ({"image_size": 128}, False),
        ({"learned_variance": False}, False),
        ({"multipliers": (1, 1, 2, 2, 4, 3)}, False),
        ({"head_width": 32}, False),
        ({"blocks": 1}, False),
    ],
)
def test_the_published_network_needs_no_levels(changes: dict[str, Any], known: bool) -> None:
    with torch.device("meta"):
        assert is_published(ADMDenoiser(**changes)) == known


@pytest.mark.parametrize(("case", "wrong"), [("guided", "improved-diffusion"), ("improved", "guided-diffusion")])
def test_each_format_refuses_the_other_s_file(case: str, wrong: str, tmp_path: Path) -> None:
    """It would load, with the other's image size, levels and heads."""
    form, forward, options, _ = CASES[case]
    torch.save(_written(forward, options).state, tmp_path / "original.pt")
    heads = {"num_heads" if case == "guided" else "head_width": 1}
    with pytest.raises(ValueError, match=f"choose --format {form}"):
        FORMATS[wrong].load(tmp_path / "original.pt", image_size=16, preconditioning="linear", **heads)


def test_another_network_s_file_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)).state_dict(), tmp_path / "original.pt")
    for form in ("guided-diffusion", "improved-diffusion"):
        with pytest.raises(ValueError, match=r"should hold time_embed.0.weight .*choose the right --format"):
            FORMATS[form].load(tmp_path / "original.pt")
