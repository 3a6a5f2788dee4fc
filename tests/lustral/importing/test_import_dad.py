"""DAD's denoiser and kernel, from files in their authors' very layout."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lustral.detectors import load_dad_kernel
from lustral.networks import Penultimate, load_image_denoiser
from lustral.networks.importing.command import import_weights
from tests.contracts import ToyClassifier, generator, images

WIDTHS, DEPTHS = (16, 32, 32), (2, 3, 1)


def _state() -> dict[str, Tensor]:
    """The tensors of a small denoiser, with DataParallel's prefix and the blocks that are never called."""
    drawn, state = generator(), dict[str, Tensor]()

    def block(name: str, into: int, width: int) -> None:
        state[f"{name}.conv.weight"] = 0.2 * torch.randn(width, into, 3, 3, generator=drawn)
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.bn.{part}"] = 0.5 + torch.rand(width, generator=drawn)
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(7)
        state[f"{name}.se.fc.0.weight"] = torch.randn(width // 16, width, generator=drawn)
        state[f"{name}.se.fc.2.weight"] = torch.randn(width, width // 16, generator=drawn)

    for stage, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True)):
        for i in range(depth):
            block(f"module.fwd.{stage}.{i}", width if i else (3, *WIDTHS)[stage], width)
        if stage + 1 < len(WIDTHS):
            for i in range(depth):
                block(f"module.back.{stage}.{i}", width if i else width + WIDTHS[stage + 1], width)
    state["module.final.weight"] = torch.randn(3, WIDTHS[0], 1, 1, generator=drawn)
    return state


def _original(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """What the authors' network computes of ``x``."""

    def stage(name: str, hidden: Tensor, depth: int, stride: int) -> Tensor:
        for i in range(depth):
            get = {k.removeprefix(f"module.{name}.{i}."): v for k, v in state.items() if f"module.{name}.{i}." in k}
            hidden = F.conv2d(hidden, get["conv.weight"], stride=stride if i == 0 else 1, padding=1)
            hidden = F.relu(
                F.batch_norm(hidden, *(get[f"bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))
            )
        return hidden

    outputs, hidden = [], x
    for number, depth in enumerate(DEPTHS):
        hidden = stage(f"fwd.{number}", hidden, depth, 2 if number else 1)
        outputs.append(hidden)
    for number in (1, 0):
        hidden = F.interpolate(hidden, outputs[number].shape[2:], mode="bilinear")
        hidden = stage(f"back.{number}", torch.cat((hidden, outputs[number]), 1), DEPTHS[number], 1)
    return x + F.conv2d(hidden, state["module.final.weight"])


def test_the_imported_denoiser_computes_what_the_original_does(tmp_path: Path) -> None:
    torch.save(_state(), tmp_path / "d.pth")
    path = import_weights("dad-denoiser", tmp_path / "d.pth", tmp_path / "d.safetensors", image_size=12)
    network = load_image_denoiser(str(path)).eval()
    assert (network.widths, network.depths, network.image_size) == (list(WIDTHS), list(DEPTHS), 12)
    x = images(2, (3, 12, 12))
    torch.testing.assert_close(network(x), _original(_state(), x))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda s: s.pop("module.back.0.1.conv.weight"), "1 missing .back.0.1.conv.weight"),
        (lambda s: s.update({"module.extra": torch.ones(1)}), "1 unknown .extra"),
        (lambda s: s.update({"module.fwd.0.0.se.fc.0.weight": torch.ones(2, 16)}), "no unused squeeze"),
        (lambda s: s.update({"module.final.weight": torch.full((3, 16, 1, 1), torch.nan)}), "NaN or Inf"),
    ],
)
def test_another_file_is_refused(spoil: Callable[[dict[str, Tensor]], object], sentence: str, tmp_path: Path) -> None:
    state = _state()
    spoil(state)
    torch.save(state, tmp_path / "d.pth")
    with pytest.raises(ValueError, match=sentence):
        import_weights("dad-denoiser", tmp_path / "d.pth", tmp_path / "d.safetensors")


def _features() -> nn.Module:
    return Penultimate(ToyClassifier())


def test_the_kernels_numbers_are_taken_as_they_stand(tmp_path: Path) -> None:
    found = {"ep": torch.tensor([5e-11]), "sigma0": torch.tensor(1251.9), "sigma": torch.tensor([2051.6])}
    torch.save(found, tmp_path / "k.pth")
    numbers = load_dad_kernel(_features(), str(tmp_path / "k.pth")).numbers()
    assert numbers == pytest.approx({"eps": 5e-11, "feature_bandwidth": 1251.9, "pixel_bandwidth": 2051.6}, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sigma1": torch.ones(1)}, "and nothing else; it holds ep, sigma0, sigma, sigma1"),
        ({"sigma": torch.ones(2)}, "sigma in .* is no tensor of one finite number"),
        ({"sigma0": torch.tensor(-1.0)}, "feature_bandwidth of the kernel is -1.0"),
    ],
)
def test_other_kernels_are_refused(change: dict[str, Tensor], sentence: str, tmp_path: Path) -> None:
    found = {"ep": torch.tensor([5e-11]), "sigma0": torch.tensor(1251.9), "sigma": torch.tensor([2051.6])}
    torch.save(found | change, tmp_path / "k.pth")
    with pytest.raises(ValueError, match=sentence):
        load_dad_kernel(_features(), str(tmp_path / "k.pth"))
    with pytest.raises(FileNotFoundError, match="no kernel file"):
        load_dad_kernel(_features(), str(tmp_path / "none.pth"))
