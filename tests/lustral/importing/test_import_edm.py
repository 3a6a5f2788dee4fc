"""EDM's pickles, written by the mechanism that writes the published ones: nothing in them runs, every tensor lands."""

import os
import pickle
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lustral.networks import SongUNetDenoiser, load_denoiser
from lustral.networks.importing.command import import_weights
from lustral.networks.importing.edm import _names, load, rules
from lustral.networks.importing.inert_pickle import Held, read_inert
from tests.contracts import generator, relative_error
from tests.lustral.importing.song_reference import Module, Net, evaluate, make

DDPMPP, NCSNPP = Net(), Net(ncsn=True, fourier=True, multipliers=(2, 1, 2), blocks=1, attention=(8, 4))
BLOCK = {"norm0": "norm0", "conv0": "conv0", "time": "affine", "norm1": "norm1", "conv1": "conv1", "skip": "skip"}
# A stand-in for the text of a published class's module. Whoever executes it leaves a folder behind.
SOURCE = "import os\nos.mkdir('executed')\nimport torch\nclass Any(torch.nn.Module):\n    pass\n"


def reconstruct(meta: dict[str, Any]) -> nn.Module:
    """What the original does when such a pickle is loaded: execute the text, and fill an object of its class."""
    module = types.ModuleType("imported")
    exec(meta["module_src"], module.__dict__)
    made = module.__dict__["Any"].__new__(module.__dict__["Any"])
    made.__dict__.update(meta["state"])
    return made


class EasyDict(dict[str, Any]):
    """The original's dictionary with attributes."""


@pytest.fixture(autouse=True)
def _persistence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch_utils.persistence`` for the time of a test, whose folder is the working folder."""
    fake = types.ModuleType("torch_utils.persistence")
    fake._reconstruct_persistent_obj = reconstruct  # type: ignore[attr-defined]
    monkeypatch.setattr(reconstruct, "__module__", "torch_utils.persistence")
    monkeypatch.setattr(reconstruct, "__qualname__", "_reconstruct_persistent_obj")
    monkeypatch.setattr(reconstruct, "__name__", "_reconstruct_persistent_obj")
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", fake)
    records = types.ModuleType("dnnlib.util")
    records.EasyDict = EasyDict  # type: ignore[attr-defined]
    monkeypatch.setattr(EasyDict, "__module__", "dnnlib.util")
    monkeypatch.setitem(sys.modules, "dnnlib", types.ModuleType("dnnlib"))
    monkeypatch.setitem(sys.modules, "dnnlib.util", records)
    monkeypatch.chdir(tmp_path)


class Persistent(nn.Module):
    """A module that pickles as the text of its class and its state."""

    def __init__(self, name: str, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self._name, self._init_args, self._init_kwargs = name, args, kwargs
        self.skip_scale = np.sqrt(0.5)  # a NumPy number, as in the original

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": self._name, "state": self.__dict__}
        return reconstruct, (meta,), None


class Loss:
    """A loss as ECT has it, with one of its own methods among its attributes."""

    def __init__(self) -> None:
        self.t_to_r = self.sigmoid

    def sigmoid(self) -> None:
        """Pickled by name, through ``getattr``."""

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": "ECMLoss", "state": self.__dict__}
        return reconstruct, (meta,), None


def named(net: Net, modules: list[Module]) -> dict[str, Tensor]:
    """Parameters and buffers by the original's names."""
    names, found, source = iter(originals(net)), {}, ""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0] if net.ncsn else [1.0, 1.0])
    kernel = (torch.outer(taps, taps) / taps.sum() ** 2)[None, None]
    for kind, tensors in modules:
        if kind == "attention":  # rows of channel 0's q, k, v, then of channel 1's
            for member in ("weight", "bias"):
                rows = torch.stack([tensors[f"{name}.{member}"] for name in "qkv"], 1).flatten(0, 1)
                found[f"{source}.qkv.{member}"] = rows[..., None, None] if member == "weight" else rows
                found[f"{source}.norm2.{member}"] = tensors[f"norm.{member}"]
            found[f"{source}.proj.weight"] = tensors["o.weight"][..., None, None]
            found[f"{source}.proj.bias"] = tensors["o.bias"]
            continue
        source = next(names)
        for name, tensor in tensors.items():
            layer, _, member = name.rpartition(".")
            target = "freqs" if kind == "fourier" else f"{BLOCK[layer]}.{member}" if kind == "block" else member
            found[f"{source}.{target}"] = tensor
        if source.endswith(("_down", "_up")):
            found |= {f"{source}.{member}.resample_filter": kernel.clone() for member in ("conv0", "skip")}
        if source.endswith("_aux_residual"):
            found[f"{source}.resample_filter"] = kernel.clone()
    return found


def originals(net: Net) -> list[str]:
    """The original's modules in the order of the forward pass, written out level by level."""
    sizes = [f"{net.size // 2**level}x{net.size // 2**level}" for level in range(len(net.multipliers))]
    encoder = [f"enc.{sizes[0]}_conv"]
    for level, size in enumerate(sizes):
        if level:
            encoder += [f"enc.{size}_down", *([f"enc.{size}_aux_residual"] if net.ncsn else [])]
        encoder += [f"enc.{size}_block{i}" for i in range(net.blocks)]
    decoder = [f"dec.{sizes[-1]}_in0", f"dec.{sizes[-1]}_in1"]
    for level, size in reversed(list(enumerate(sizes))):
        decoder += [] if level == len(sizes) - 1 else [f"dec.{size}_up"]
        decoder += [f"dec.{size}_block{i}" for i in range(net.blocks + 1)]
    first = ["map_noise"] if net.fourier else []
    decoder += [f"dec.{sizes[0]}_aux_norm", f"dec.{sizes[0]}_aux_conv"]
    return [*first, "map_layer0", "map_layer1", *encoder, *decoder]


def arguments(net: Net, **changes: Any) -> dict[str, Any]:
    """What EDM's training hands to its SongUNet; the rest is left to its defaults."""
    given: dict[str, Any] = {
        "img_resolution": net.size,
        "in_channels": net.channels,
        "out_channels": net.channels,
        "label_dim": 0,
        "model_type": "SongUNet",
        "embedding_type": "fourier" if net.fourier else "positional",
        "encoder_type": "residual" if net.ncsn else "standard",
        "decoder_type": "standard",
        "channel_mult_noise": 2 if net.fourier else 1,
        "resample_filter": [1, 3, 3, 1] if net.ncsn else [1, 1],
        "model_channels": net.base,
        "channel_mult": list(net.multipliers),
        "num_blocks": net.blocks,
        "attn_resolutions": list(net.attention),
        "augment_dim": 9,
        "dropout": 0.13,
    }
    return {name: value for name, value in {**given, **changes}.items() if name != "model_type"}


def build(net: Net, kind: str = "EDMPrecond", changes: dict[str, Any] | None = None, **constants: Any) -> Persistent:
    """The object that a pickle holds; ``changes`` are to what is recorded, ``constants`` the outer object's."""
    outer = Persistent(kind, img_resolution=net.size, img_channels=net.channels)
    outer.model = Persistent("SongUNet", **arguments(net, **(changes or {})))
    put(outer, **{"label_dim": 0, "sigma_data": 0.5, "use_fp16": False, **constants})
    tensors = named(net, make(net)) | {"map_augment.weight": torch.ones(net.features, 9)}
    for name, tensor in tensors.items():
        attach(outer.model, name, tensor)
    return outer


def put(module: Any, **values: Any) -> None:
    """Plain attributes."""
    for name, value in values.items():
        setattr(module, name, value)


def attach(module: nn.Module, name: str, tensor: Tensor) -> None:
    """``tensor`` as ``module``'s ``name``, making the modules on the way."""
    *path, member = name.split(".")
    for part in path:
        if part not in dict(module.named_children()):
            module.add_module(part, nn.ModuleDict() if part in ("enc", "dec") else Persistent("Part"))
        module = module.get_submodule(part)
    if member in ("freqs", "resample_filter"):
        module.register_buffer(member, tensor)
    else:
        setattr(module, member, nn.Parameter(tensor, requires_grad=False))


def write(network: Any, protocol: int = 4) -> Path:
    """As EDM's training writes a snapshot."""
    path = Path("edm.pkl")
    content = {"ema": network, "loss_fn": Loss(), "augment_pipe": None, "dataset_kwargs": EasyDict(resolution=8)}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def denoised(net: Net, kind: str, x: Tensor, sigma: Tensor) -> Tensor:
    """D(x; sigma) of Karras et al. (2022), table 1, and of a consistency model, in float64."""
    s, x = sigma[:, None, None, None].double(), x.double()

    def bare(scaled: Tensor, label: Tensor) -> Tensor:
        return evaluate(net, make(net), scaled, label)

    if kind == "VPPrecond":  # alpha_bar = exp(-19.9 t^2 / 2 - 0.1 t) = 1 / (1 + sigma^2)
        t = ((0.1**2 + 2 * 19.9 * (1 + sigma.double() ** 2).log()).sqrt() - 0.1) / 19.9
        return x - s * bare(x / (1 + s**2).sqrt(), 999 * t)
    if kind == "VEPrecond":
        return x + s * bare(x, (sigma.double() / 2).log())
    shift = 0.003 if kind == "ECMPrecond" else 0.0
    out = bare(x / (s**2 + 0.25).sqrt(), sigma.double().log() / 4)
    return 0.25 / ((s - shift) ** 2 + 0.25) * x + 0.5 * (s - shift) / (s**2 + 0.25).sqrt() * out


@pytest.mark.parametrize("net", [DDPMPP, NCSNPP], ids=["DDPM++", "NCSN++"])
@pytest.mark.parametrize("kind", ["EDMPrecond", "VPPrecond", "VEPrecond", "ECMPrecond"])
def test_the_pickled_network_is_the_function_of_the_paper(kind: str, net: Net) -> None:
    constants = {
        "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000},
        "EDMPrecond": {"sigma_min": 0.0},
        "ECMPrecond": {"sigma_min": 0.003},
    }
    denoiser = load(write(build(net, kind, **constants.get(kind, {}))))
    assert isinstance(denoiser, SongUNetDenoiser)
    sigma = torch.tensor([0.004, 0.5, 20.0], dtype=torch.float64)
    x = torch.randn(3, 3, net.size, net.size, generator=generator(5)) * (1 + sigma[:, None, None, None].float())
    t = denoiser.schedule.time(sigma)
    alpha = denoiser.schedule.alpha(t)[:, None, None, None].float()
    with torch.no_grad():
        found = denoiser(alpha * x, t)
    for row, expected in zip(found, denoised(net, kind, x, sigma), strict=True):
        assert relative_error(row, expected) < 1e-5
    assert denoiser.augment_dim == 9
    assert torch.equal(denoiser.network.state_dict()["map_augment.weight"], torch.ones(net.features, 9))
    assert denoiser.dropout == 0.13


def test_the_end_of_the_path_goes_into_the_weights_file() -> None:
    import_weights("edm", write(build(DDPMPP, "ECMPrecond", sigma_min=0.003)), "weights.safetensors")
    again = load_denoiser("weights.safetensors")
    assert again.preconditioner.sigma_min == 0.003  # type: ignore[union-attr]
    x = torch.randn(1, 3, 8, 8, generator=generator())
    with torch.no_grad():  # there the function is the identity
        assert relative_error(again(x, again.schedule.time(torch.tensor(0.003, dtype=torch.float64))), x) < 1e-5


@pytest.mark.parametrize("protocol", [3, 5])
def test_other_protocols_are_read(protocol: int) -> None:
    assert isinstance(load(write(build(DDPMPP), protocol)), SongUNetDenoiser)


def test_importing_executes_nothing_where_a_plain_load_would() -> None:
    path = write(build(DDPMPP))
    import_weights("edm", path, "weights.safetensors")
    assert not Path("executed").exists()
    assert isinstance(load_denoiser("weights.safetensors"), SongUNetDenoiser)
    with pytest.raises(FileExistsError):  # the first object makes the folder, the second cannot
        pickle.loads(path.read_bytes())
    assert Path("executed").exists()


def test_the_published_network_has_425_tensors() -> None:
    with torch.device("meta"):
        network = SongUNetDenoiser(multipliers=(2, 2, 2), blocks=4, augment_dim=9, preconditioning="edm")
    sources = {source for r in rules(network) for source in r.sources}
    filters = 2 * sum(name.endswith(("_down", "_up")) for name in _names(network))
    assert len(sources) + filters == 425
    expected = {"model.enc.32x32_conv.weight", "model.enc.16x16_block3.qkv.bias", "model.dec.8x8_in0.norm2.weight"}
    assert expected | {"model.dec.32x32_aux_conv.bias", "model.map_layer1.weight"} <= sources


@pytest.mark.parametrize(
    ("changes", "constants", "sentence"),
    [
        ({"label_dim": 10}, {}, "is class-conditional"),
        ({}, {"label_dim": 10}, "is class-conditional"),
        ({"encoder_type": "skip"}, {}, "encoder_type = 'skip'; only 'standard' or 'residual' is known"),
        ({"decoder_type": "skip"}, {}, "decoder_type = 'skip'; only 'standard' is known"),
        ({"channel_mult_emb": 2}, {}, "channel_mult_emb = 2; only 4 is known"),
        ({"out_channels": 6}, {}, "out_channels = 6; only 3 is known"),
        ({"resample_filter": [1, 2, 1]}, {}, r"resample_filter is \[1, 2, 1\]"),
        ({"model_channels": "16"}, {}, "was made with '16' where a number belongs"),
        ({"attn_resolutions": 4}, {}, "was made with '4' where a number belongs"),
        ({}, {"sigma_data": None}, "was made with None where a number belongs"),
        ({"new_trick": True}, {}, "holds a SongUNet with 'new_trick'"),
        ({"num_blocks": 3}, {}, "missing .*model.enc.8x8_block2"),
    ],
)
def test_other_networks_are_refused(changes: dict[str, Any], constants: dict[str, Any], sentence: str) -> None:
    _refused(build(DDPMPP, changes=changes, **constants), sentence)


def _refused(network: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        load(write(network))
    assert "\n" not in str(caught.value)


def test_other_constants_are_refused() -> None:
    _refused(build(DDPMPP, "ECMPrecond"), "was made with None where a number belongs")
    _refused(build(DDPMPP, "VPPrecond", beta_d=10.0), r"VPPrecond with beta_d = 10.0; only 19.9 is known")


def test_other_classes_are_refused() -> None:
    _refused(build(DDPMPP, "iDDPMPrecond"), "holds a iDDPMPrecond of a SongUNet; known are EDMPrecond, VPPrecond")
    adm = build(DDPMPP)
    adm.model = Persistent("DhariwalUNet")
    _refused(adm, "holds a EDMPrecond of a DhariwalUNet")
    _refused(None, "without a preconditioned network under 'ema'")
    _refused(Persistent("EDMPrecond"), "without a preconditioned network under 'ema'")
    silent = build(DDPMPP)
    put(silent.model, _init_kwargs=None)
    _refused(silent, "does not record what its network was made with")


def test_wrong_tensors_are_named() -> None:
    swapped, short, long = build(DDPMPP), build(DDPMPP), build(DDPMPP)
    block = swapped.get_submodule("model.enc.8x8_block0.conv0")
    block.weight = nn.Parameter(torch.zeros(16, 16, 1, 1))
    _refused(swapped, r"model.enc.8x8_block0.conv0.weight gives \(16, 16, 1, 1\) where \(16, 16, 3, 3\) belongs")
    del short.get_submodule("model.enc.8x8_block0.norm1").bias
    _refused(short, r"1 missing \(model.enc.8x8_block0.norm1.bias\); 0 unknown")
    attach(long, "model.enc.extra.weight", torch.zeros(1))
    _refused(long, r"0 missing; 1 unknown \(model.enc.extra.weight\)")


def test_another_filter_is_refused() -> None:
    network = build(NCSNPP)
    down = network.get_submodule("model.enc.4x4_down.conv0")
    down.resample_filter = torch.full((1, 1, 4, 4), 1 / 16)
    _refused(network, r"the filter \[1, 3, 3, 1\] as model.enc.4x4_down.conv0.resample_filter, and has another")
    put(down, resample_filter=None)
    _refused(network, "resample_filter, and does not")


class _Calls:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def test_a_file_that_would_run_something_is_refused() -> None:
    _refused(_Calls(os.mkdir, "intruder"), "asks for (posix|nt).mkdir, which no network needs and which could run code")
    # By way of what a network does need: a state that calls, a class's name, and a storage with a call in it.
    network = build(DDPMPP)
    put(network, sigma_data=_Calls(os.mkdir, "intruder"))
    _refused(network, "asks for (posix|nt).mkdir")
    _refused(build(DDPMPP, "__import__('os').mkdir('intruder')"), "holds a __import__")
    inner = pickle.dumps(_Calls(os.mkdir, "intruder"), protocol=2)
    put(network, sigma_data=_Calls(torch.storage._load_from_bytes, inner))
    _refused(network, "asks for more than numbers inside a tensor, which no network needs")
    _refused(_Calls(reconstruct, "no state"), "a persistent object without a state")
    assert not Path("intruder").exists()


def test_a_bound_method_is_held_and_not_looked_up() -> None:
    """By ``getattr`` a pickle could reach any function of any object."""
    content = read_inert(write(_Calls(getattr, {}, "clear")))
    assert isinstance(content["ema"], Held)
    assert isinstance(content["loss_fn"].state["t_to_r"], Held)


def test_a_file_of_torch_save_is_of_another_format() -> None:
    torch.save({"all_modules.0.weight": torch.ones(2)}, "weights.pt")
    with pytest.raises(ValueError, match=r"is a file of torch\.save and no pickle of a network: check --format"):
        load("weights.pt")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.999])
def test_a_part_of_a_file_is_refused(share: float) -> None:
    path = write(build(DDPMPP))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=re.escape(str(path)) + " is (cut short or no pickle|empty)"):
        load(path)
