"""Score-SDE's checkpoints: every tensor lands where the formulas of Song et al. (2021) want it."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lustral.networks import SongUNetDenoiser, load_denoiser
from lustral.networks.importing.command import import_weights
from lustral.networks.importing.score_sde import load, rules
from lustral.networks.importing.song_layout import parts
from tests.contracts import generator, relative_error
from tests.lustral.importing.song_reference import Module, Net, evaluate, make

DDPMPP = Net()
NETS = {
    "DDPM++": DDPMPP,
    "DDPM++, three levels, attention in two": Net(multipliers=(2, 1, 2), blocks=1, attention=(8, 4)),
    "DDPM++, one level": Net(multipliers=(1,), attention=()),
    "NCSN++, VP": Net(ncsn=True),
    "NCSN++, VE": Net(ncsn=True, fourier=True, blocks=1),
}
BLOCK = {"norm0": "GroupNorm_0", "conv0": "Conv_0", "time": "Dense_0", "norm1": "GroupNorm_1"}
BLOCK |= {"conv1": "Conv_1", "skip": "Conv_2"}


def named(modules: list[Module]) -> dict[str, Tensor]:
    """As ``parameters()`` of the original names and orders them (buffers apart)."""
    found: dict[str, Tensor] = {}
    for i, (kind, tensors) in enumerate(modules):
        for name, tensor in tensors.items():
            layer, _, member = name.rpartition(".")
            if kind == "block":
                name = f"{BLOCK[layer]}.{member}"
            elif kind == "attention" and layer != "norm":  # NIN: y = x W + b
                name = f"NIN_{'qkvo'.index(layer)}.{'W' if member == 'weight' else 'b'}"
                tensor = tensor.T if member == "weight" else tensor
            elif kind == "attention":
                name = f"GroupNorm_0.{member}"
            elif kind == "pyramid":
                name = f"Conv2d_0.{member}"
            found[f"all_modules.{i}.{name.removeprefix('.')}"] = tensor
    return found


def checkpoint(modules: list[Module], raw: list[Module], prefix: str = "module.") -> dict[str, Any]:
    """What ``utils.save_checkpoint`` saves: the raw weights by name, the average in order and without the frozen."""
    state = {"sigmas": torch.linspace(50, 0.01, 1000, dtype=torch.float64), **named(raw)}
    trained = [tensor for name, tensor in named(modules).items() if name != "all_modules.0.W"]
    parameter = nn.Parameter(torch.zeros(2))
    optimiser = torch.optim.Adam([parameter], lr=2e-4)
    parameter.sum().backward()
    optimiser.step()
    return {
        "optimizer": optimiser.state_dict(),
        "model": {f"{prefix}{name}": tensor for name, tensor in state.items()},
        "ema": {"decay": 0.9999, "num_updates": 7, "shadow_params": trained},
        "step": 7,
    }


def with_frozen_of(modules: list[Module], raw: list[Module]) -> list[Module]:
    """``modules`` with the random frequencies of ``raw``: those are not averaged."""
    return [raw[0], *modules[1:]] if raw[0][0] == "fourier" else modules


def write(folder: Path, content: Any) -> Path:
    path = folder / "checkpoint_8.pth"
    torch.save(content, path)
    return path


@pytest.fixture
def content() -> dict[str, Any]:
    return checkpoint(make(DDPMPP), make(DDPMPP, seed=1))


@pytest.mark.parametrize("prefix", ["module.", ""], ids=["in DataParallel", "bare"])
@pytest.mark.parametrize("net", NETS.values(), ids=NETS.keys())
def test_the_average_is_the_function_of_the_papers(net: Net, prefix: str, tmp_path: Path) -> None:
    raw, modules = make(net, seed=1), make(net)
    sde = None if net.fourier else "vp"
    denoiser = load(write(tmp_path, checkpoint(modules, raw, prefix)), sde=sde, image_size=net.size)
    assert isinstance(denoiser, SongUNetDenoiser)
    modules = with_frozen_of(modules, raw)
    x = torch.randn(3, 3, net.size, net.size, generator=generator(5))
    with torch.no_grad():
        if net.fourier:  # score = F(x, ln s) / s, on [0, 1] images with noise of deviation s
            deviation = torch.tensor([0.02, 0.4, 30.0], dtype=torch.float64)
            mean = x + deviation[:, None, None, None] * evaluate(net, modules, 2 * x - 1, deviation.log())
            found, expected = denoiser(2 * x - 1, denoiser.schedule.time(2 * deviation)), 2 * mean - 1
        else:  # the noise is F(x, 999 t)
            t = torch.tensor([0.004, 0.1, 1.0], dtype=torch.float64)
            alpha = torch.exp(-0.25 * t**2 * 19.9 - 0.05 * t)[:, None, None, None]
            noise = evaluate(net, modules, x, 999 * t)
            assert relative_error(denoiser.noise(x, 1000 * t), noise) < 1e-5
            found, expected = denoiser(x, 1000 * t), (x - (1 - alpha**2).sqrt() * noise) / alpha
    for row in range(3):
        assert relative_error(found[row], expected[row]) < 1e-5


def test_plain_states_are_taken_as_they_are(content: dict[str, Any], tmp_path: Path) -> None:
    denoiser = load(write(tmp_path, content["model"]), sde="vp", image_size=8)
    x, label = torch.randn(2, 3, 8, 8, generator=generator(5)), torch.tensor([1.0, 500.0])
    assert isinstance(denoiser, SongUNetDenoiser)
    with torch.no_grad():
        found = denoiser.evaluate(x, label)
    assert relative_error(found, evaluate(DDPMPP, make(DDPMPP, seed=1), x, label)) < 1e-5


def test_the_imported_file_rebuilds_the_network(content: dict[str, Any], tmp_path: Path) -> None:
    source, output = write(tmp_path, content), tmp_path / "weights.safetensors"
    import_weights("score-sde", source, output, sde="vp", image_size=8)
    x, t = torch.randn(1, 3, 8, 8, generator=generator()), torch.tensor(100.0)
    again, direct = load_denoiser(str(output)), load(source, sde="vp", image_size=8)
    assert torch.equal(again.eval()(x, t), direct(x, t))


def test_the_deep_network_has_the_published_list() -> None:
    with torch.device("meta"):
        network = SongUNetDenoiser()
    sources = [source for r in rules(network) for source in r.sources]
    assert len(sources) == len(set(sources)) == 956
    kinds = [part.kind for part in parts(network.network)]
    assert len(kinds) == 91
    assert kinds[:3] == ["dense", "dense", "conv"]
    assert kinds[89:] == ["norm", "conv"]
    assert [i for i, kind in enumerate(kinds) if kind == "attention"] == [*range(13, 29, 2), 47, 78]
    names = [part.name for part in parts(network.network)]
    levels = [names.index(f"network.encoder.{i}") for i in (8, 17, 26)]
    assert levels + [names.index(f"network.decoder.{i}.0") for i in (1, 2, 3)] == [11, 28, 37, 58, 68, 79]


def test_the_wrong_size_of_image_moves_the_attention(content: dict[str, Any], tmp_path: Path) -> None:
    """It is named by its resolution; where it is in the network, the file says."""
    denoiser = load(write(tmp_path, content), sde="vp", image_size=64)
    assert isinstance(denoiser, SongUNetDenoiser)
    assert denoiser.attention_sizes == [32]


def _refused(folder: Path, content: Any, sentence: str, sde: Any = "vp") -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        load(write(folder, content), sde=sde, image_size=8)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("net", ["DDPM++", "NCSN++, VP"])
def test_a_process_that_no_tensor_tells_is_asked_for(net: str, tmp_path: Path) -> None:
    """The discrete-time VE NCSN++ (``ve/cifar10_ncsnpp``) has the very tensors of the continuous VP one."""
    content = checkpoint(make(NETS[net]), make(NETS[net], seed=1))
    _refused(tmp_path, content, "has positional features .* add --set sde=vp if it was", sde=None)
    _refused(tmp_path, content, "so as a VE model it is a discrete-time one .*, which is not known here", sde="ve")
    _refused(tmp_path, content, "--set sde takes vp or ve, not 'subvp'", sde="subvp")


def test_fourier_features_are_those_of_continuous_ve_models(tmp_path: Path) -> None:
    content = checkpoint(make(NETS["NCSN++, VE"]), make(NETS["NCSN++, VE"], seed=1))
    _refused(tmp_path, content, "has Fourier features .* leave --set sde=vp out", sde="vp")
    denoiser = load(write(tmp_path, content), sde="ve", image_size=8)
    assert isinstance(denoiser, SongUNetDenoiser)
    assert denoiser.preconditioning == "ve"


def test_an_average_one_entry_short_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    content["ema"]["shadow_params"].pop(3)
    count = len(content["model"]) - 1
    _refused(tmp_path, content, f"has {count - 1} tensors in its moving average .* for {count} parameters")


def test_an_average_in_another_order_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    average = content["ema"]["shadow_params"]
    average[0], average[2] = average[2], average[0]
    _refused(tmp_path, content, r"has \(64, 64\) in its moving average where the model's all_modules.0.weight is")


def test_missing_and_unknown_names_are_named(content: dict[str, Any], tmp_path: Path) -> None:
    state = content["model"]
    gone = "module.all_modules.5.Conv_1.bias"
    without = {name: tensor for name, tensor in state.items() if name != gone}
    _refused(tmp_path, without, r"1 missing \(all_modules.5.Conv_1.bias\); 0 unknown")
    _refused(tmp_path, {**state, "module.extra": torch.zeros(1)}, r"0 missing; 1 unknown \(extra\)")
    kernel = "module.all_modules.4.Conv_0.weight"
    without = {name: tensor for name, tensor in state.items() if name != kernel}
    _refused(tmp_path, without, "should hold all_modules.4.Conv_0.weight with 4 dimensions, but there is none")


def test_a_tensor_of_another_shape_is_named(content: dict[str, Any], tmp_path: Path) -> None:
    state = content["model"]
    state["module.all_modules.4.Dense_0.weight"] = torch.zeros(16, 3)
    _refused(tmp_path, state, r"all_modules.4.Dense_0.weight gives \(16, 3\) where \(16, 64\) belongs")
    state["module.all_modules.3.Conv_0.weight"] = torch.zeros(24, 16, 3, 3)
    _refused(tmp_path, state, "which no DDPM\\+\\+ or NCSN\\+\\+ with BigGAN blocks has")


def test_files_of_other_things_are_refused(content: dict[str, Any], tmp_path: Path) -> None:
    _refused(tmp_path, {"conv1.weight": torch.zeros(2, 2)}, "has no all_modules of a DDPM")
    _refused(tmp_path, {"ema": {"decay": 0.9}}, r"has a moving average \(ema\) without")
    _refused(tmp_path, [1, 2], "holds a list where named tensors were expected")
    state = {name: t for name, t in content["model"].items() if not name.startswith("module.all_modules.6.")}
    _refused(tmp_path, state, "has gaps in its list all_modules")


def test_half_a_file_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path, content)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=re.escape(f"{path} is cut short or no file of torch.save")):
        load(path, image_size=8)


class _Intruder:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("intruder",)


def test_a_file_that_would_run_something_is_refused(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content["step"] = _Intruder()
    _refused(tmp_path, content, "asks for more than tensors and plain containers")
    assert not Path("intruder").exists()
