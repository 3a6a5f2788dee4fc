"""Ho et al.'s U-Net in the PyTorch port's files and in DDIM's: the imported function is the published one, or a
sentence says why not."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lustral.networks import UNetDenoiser, load_network
from lustral.networks.importing import FORMATS
from lustral.networks.importing.command import import_weights
from lustral.networks.importing.ddpm import _rules
from tests.contracts import generator, relative_error
from tests.lustral.importing.unet_originals import OriginalUNet, ho_unet

SIZE, LEVELS = 16, torch.tensor([1.0, 100.0, 999.0, 1000.0])
FORWARD = partial(ho_unet, base=32, multipliers=(1, 2, 1), blocks=2, attends=(False, True, False))
STATES = torch.randn(len(LEVELS), 3, SIZE, SIZE, generator=generator(1))


def _state() -> dict[str, Tensor]:
    original = OriginalUNet()
    FORWARD(original, STATES[:1], LEVELS[:1])
    return original.state


def _ddim_checkpoint(state: dict[str, Tensor]) -> list[Any]:
    """[network, optimiser, epoch, step, moving average], the network trained in DataParallel."""
    parameters = [nn.Parameter(tensor) for tensor in state.values()]
    optimiser = torch.optim.Adam(parameters)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    average = {name: tensor + 1 for name, tensor in state.items()}
    return [{f"module.{name}": tensor for name, tensor in state.items()}, optimiser.state_dict(), 3, 500, average]


FILES: dict[str, tuple[Callable[[dict[str, Tensor]], Any], dict[str, Any]]] = {
    "ddpm": (lambda state: state, {"image_size": SIZE}),
    "lee-kim-svhn": (_ddim_checkpoint, {}),
}


@pytest.fixture(params=FILES)
def form(request: pytest.FixtureRequest) -> str:
    return request.param


def _imported(form: str, folder: Path, change: Callable[[dict[str, Tensor]], object] = lambda state: None) -> Any:
    write, options = FILES[form]
    state = _state()
    change(state)
    torch.save(write(state), folder / "original.ckpt")
    return load_network(
        import_weights(form, folder / "original.ckpt", folder / "weights.safetensors", **options)
    ).eval()


def test_the_imported_function_is_the_published_one(form: str, tmp_path: Path) -> None:
    denoiser = _imported(form, tmp_path)
    with torch.no_grad():
        original = OriginalUNet()
        FORWARD(original, STATES[:1], LEVELS[:1])
        eps = FORWARD(original, STATES, LEVELS - 1)
        assert relative_error(denoiser.noise(STATES, LEVELS), eps) < 1e-5
        alpha, sigma = (f(LEVELS)[:, None, None, None] for f in (denoiser.schedule.alpha, denoiser.schedule.sigma))
        found, expected = denoiser(STATES, LEVELS), (STATES - sigma * eps) / alpha
        for k in range(len(LEVELS)):
            assert relative_error(found[k], expected[k]) < 1e-5


def test_what_the_tensors_tell(form: str, tmp_path: Path) -> None:
    network = _imported(form, tmp_path)
    assert network.widths == [32, 64, 32]
    assert network.attention == [False, True, False]
    assert (network.blocks, network.channels, network.preconditioning) == (2, 3, "linear")
    assert network.image_size == (SIZE if form == "ddpm" else 32)


@pytest.mark.parametrize("member", ["q", "k", "v", "proj_out"])
def test_queries_keys_and_values_have_their_places(member: str, tmp_path: Path) -> None:
    """Each in turn numbered: where it lands is told by the number."""

    def number(state: dict[str, Tensor]) -> None:
        state[f"up.1.attn.2.{member}.weight"] = torch.arange(64.0 * 64).view(64, 64, 1, 1)

    attention = _imported("ddpm", tmp_path, number).network.up_blocks[1].attentions[2]
    layer = {"q": attention.to_q, "k": attention.to_k, "v": attention.to_v, "proj_out": attention.to_out[0]}[member]
    assert layer.weight[3, 5] == 3 * 64 + 5
    assert layer.weight[63, 0] == 63 * 64


def test_full_size() -> None:
    """Names and shapes of the published file, and every tensor has its place in the default network."""
    with torch.device("meta"):
        original = OriginalUNet("meta")
        attends = (False, True, False, False)
        call = partial(ho_unet, base=128, multipliers=(1, 2, 2, 2), blocks=2, attends=attends)
        call(original, torch.empty(1, 3, 32, 32), torch.empty(1))
        network = UNetDenoiser()
    assert len(original.state) == 328
    assert sum(tensor.numel() for tensor in original.state.values()) == 35_746_307
    made = {}
    for r in _rules(network):
        (target,), (source,) = r.targets, r.sources
        made[target] = tuple(r.make(original.state.pop(source)).shape)  # type: ignore[union-attr]
    assert not original.state
    assert made == {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


# Refusals ------------------------------------------------------------

ONCE = "mid.block_2.conv2.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(ONCE), rf"1 missing \({ONCE}\); 0 unknown"),
        (lambda state: state.pop("conv_in.weight"), "should hold conv_in.weight with 4 dimensions, but there is none"),
        (lambda state: state.update(logvar=torch.zeros(1000)), r"0 missing; 1 unknown \(logvar\)"),
        (lambda state: state.update({ONCE: torch.zeros(32, 31, 3, 3)}), rf"another shape \({ONCE} gives"),
        (lambda state: state.update({"mid.attn_1.q.weight": torch.zeros(32, 32, 3, 3)}), "cannot be rearranged"),
        (lambda state: state[ONCE].fill_(float("inf")), "NaN or Inf"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_do_not_fit_are_refused(
    form: str, change: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        _imported(form, tmp_path, change)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "weights.safetensors").exists()


def test_a_file_cut_in_half_is_refused(form: str, tmp_path: Path) -> None:
    path = tmp_path / "original.ckpt"
    torch.save(FILES[form][0](_state()), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"original.ckpt is cut short or no file of torch.save"):
        FORMATS[form].load(path)


def test_nothing_in_a_file_is_run(form: str, tmp_path: Path) -> None:
    """Not even in a part of the file that the import has no use for."""
    path = tmp_path / "original.ckpt"
    torch.save([_state(), Path.touch], path)
    with pytest.raises(ValueError, match="could run code"):
        FORMATS[form].load(path)


def test_each_format_has_its_own_container(tmp_path: Path) -> None:
    path = tmp_path / "original.ckpt"
    torch.save(_state(), path)
    with pytest.raises(ValueError, match="holds a dict where a list beginning with a state dict was expected"):
        FORMATS["lee-kim-svhn"].load(path)
    torch.save(_ddim_checkpoint(_state()), path)
    with pytest.raises(ValueError, match="holds a list where named tensors were expected"):
        FORMATS["ddpm"].load(path, image_size=SIZE)


def test_an_impossible_size_is_refused(tmp_path: Path) -> None:
    torch.save(_state(), tmp_path / "original.ckpt")
    with pytest.raises(ValueError, match="15 cannot be halved 2 times"):
        FORMATS["ddpm"].load(tmp_path / "original.ckpt", image_size=15)
