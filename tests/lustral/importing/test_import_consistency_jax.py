"""OpenAI's checkpoints of flax, packed by hand: the moving average becomes the consistency function."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import msgpack
import pytest
import torch
from torch import Tensor

from lustral.networks import SongUNetDenoiser, load_denoiser
from lustral.networks.importing.command import import_weights
from lustral.networks.importing.consistency_jax import load, rules
from lustral.networks.importing.flax_file import read_flax
from lustral.networks.importing.song_layout import parts
from tests.contracts import generator, relative_error
from tests.lustral.importing.song_reference import Module, Net, evaluate, make

NET = Net(ncsn=True, fourier=True)
NETS = {
    "two levels": NET,
    "three levels, attention in two": Net(
        ncsn=True, fourier=True, multipliers=(2, 1, 2), blocks=1, attention=(8, 4), size=16
    ),
}
CLASSES = {
    "fourier": "GaussianFourierProjection",
    "dense": "Dense",
    "conv": "Conv",
    "block": "ResnetBlockBigGANpp",
    "attention": "AttnBlockpp",
    "pyramid": "Downsample",
    "norm": "GroupNorm",
}
LAYERS = {"norm0": "GroupNorm_0", "conv0": "Conv_0", "time": "Dense_0", "norm1": "GroupNorm_1"}
LAYERS |= {"conv1": "Conv_1", "skip": "Conv_2"}


def tree(modules: list[Module]) -> dict[str, Any]:
    """flax's parameters: classes numbered as they are called, products as (in, out), kernels as (h, w, in, out)."""
    made: dict[str, Any] = {}
    seen = Counter()
    for kind, tensors in modules:
        here = made.setdefault(f"{CLASSES[kind]}_{seen[kind]}", {})
        seen[kind] += 1
        for name, tensor in tensors.items():
            layer, _, member = name.rpartition(".")
            tensor = tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T if tensor.ndim == 2 else tensor
            place = here
            if kind == "attention" and layer != "norm":
                place = here.setdefault(f"NIN_{'qkvo'.index(layer)}", {})
                member = "W" if member == "weight" else "b"
            elif kind == "pyramid":  # a module of StyleGAN2's, whose weight is called so
                place = here.setdefault("Conv2d_0", {})
            else:
                if layer:
                    place = here.setdefault("GroupNorm_0" if layer == "norm" else LAYERS[layer], {})
                normalises = layer.startswith("norm") or kind == "norm"
                member = member.replace("weight", "scale" if normalises else "kernel")
            place[member] = tensor
    return made


def array(shape: tuple[int, ...], name: str, content: bytes, code: int = 1) -> msgpack.ExtType:
    """flax's extension 1 is an array, 3 a NumPy scalar."""
    return msgpack.ExtType(code, pack((shape, name, content)))


def pack(value: Any) -> bytes:
    return msgpack.packb(value, use_bin_type=True)  # type: ignore[return-value]


def packed(value: Any) -> Any:
    """``value`` with its tensors as flax writes arrays."""
    if isinstance(value, dict):
        return {name: packed(item) for name, item in value.items()}
    if isinstance(value, Tensor):
        content = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return array(tuple(value.shape), str(value.dtype).removeprefix("torch."), content)
    return value


def write(folder: Path, average: Any, **others: Any) -> Path:
    """A ``State`` as the authors save it."""
    scalar = array((), "float32", b"\0\0\0\0", code=3)
    state = {
        "step": 800_000,
        "lr": scalar,
        "ema_rate": 0.9999,
        "params": tree(make(NET, seed=1)),
        "params_ema": average,
        "model_state": {},
        "opt_state": {"0": {"count": torch.tensor(3, dtype=torch.int32), "mu": tree(make(NET, seed=2))}},
        "rng_state": torch.tensor([1, 2], dtype=torch.int64),
    }
    path = folder / "checkpoint_80"
    path.write_bytes(pack(packed({**state, **others})))
    return path


@pytest.mark.parametrize("net", NETS.values(), ids=NETS.keys())
def test_the_average_is_the_consistency_function(net: Net, tmp_path: Path) -> None:
    modules = make(net)
    path = write(tmp_path, tree(modules))
    x = torch.randn(3, 3, net.size, net.size, generator=generator(5))
    t = torch.tensor([0.01, 0.6, 75.0], dtype=torch.float64)
    s, x64 = t[:, None, None, None], x.double()
    out = evaluate(net, modules, x64 / (s**2 + 0.25).sqrt(), 0.25 * t.log())
    for name, shift in (("consistency", 0.002), ("edm", 0.0)):
        expected = 0.25 / ((s - shift) ** 2 + 0.25) * x64 + 0.5 * (s - shift) / (s**2 + 0.25).sqrt() * out
        denoiser = load(path, image_size=net.size, attention_sizes=net.attention, preconditioning=name)  # type: ignore[arg-type]
        assert isinstance(denoiser, SongUNetDenoiser)
        with torch.no_grad():
            found = denoiser(x, denoiser.schedule.time(t))
        for row in range(3):
            assert relative_error(found[row], expected[row]) < 1e-5


def test_the_imported_file_rebuilds_the_network(tmp_path: Path) -> None:
    source, output = write(tmp_path, tree(make(NET))), tmp_path / "weights.safetensors"
    options: dict[str, Any] = {"preconditioning": "consistency", "image_size": 8, "attention_sizes": [4]}
    import_weights("consistency-jax", source, output, **options)
    direct, again = load(source, **options), load_denoiser(str(output))
    x, t = torch.randn(1, 3, 8, 8, generator=generator()), torch.tensor(500.0)
    assert torch.equal(again.eval()(x, t), direct(x, t))


def test_teacher_and_pupil_must_be_told(tmp_path: Path) -> None:
    """``edm_cifar10_ema`` and ``checkpoint_80`` hold the same names and shapes, and are other functions."""
    source = write(tmp_path, tree(make(NET)))
    with pytest.raises(ValueError, match="The format consistency-jax needs --set preconditioning=VALUE"):
        import_weights("consistency-jax", source, tmp_path / "w.safetensors", image_size=8, attention_sizes=[4])


def test_the_published_network_has_its_tensors_and_places() -> None:
    """445 arrays, 56.4 M numbers; the places are those that the port to PyTorch gives to each module."""
    with torch.device("meta"):
        network = SongUNetDenoiser(
            multipliers=(2, 2, 2),
            blocks=4,
            embedding="fourier",
            encoder="residual",
            resample_filter=(1, 3, 3, 1),
            channel_mult_noise=2,
            preconditioning="consistency",
        )
    sources = [source for r in rules(network) for source in r.sources]
    assert len(sources) == len(set(sources)) == 445
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == 56_395_651
    kinds = [part.kind for part in parts(network.network)]
    blocks = [i for i, kind in enumerate(kinds) if kind == "block"]
    assert blocks == [*range(4, 9), 10, 12, 14, 16, 18, *range(20, 25), 26, *range(27, 38), *range(39, 45)]
    assert [i for i, kind in enumerate(kinds) if kind == "attention"] == [11, 13, 15, 17, 25, 38]
    assert [i for i, kind in enumerate(kinds) if kind == "pyramid"] == [9, 19]
    assert [i for i, kind in enumerate(kinds) if kind in ("fourier", "dense", "conv", "norm")] == [0, 1, 2, 3, 45, 46]


def test_every_type_of_number_is_read(tmp_path: Path) -> None:
    values = torch.tensor([[1.0, -2.5], [0.25, 3.0]])
    average = {
        "half": values.bfloat16(),
        "double": values.double(),
        "none": torch.zeros(0, 3),
        "one": torch.tensor(2.0),
    }
    found = read_flax(write(tmp_path, average), "params_ema")
    assert found.keys() == average.keys()
    for name, tensor in average.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def _refused(path: Path, sentence: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        load(path, **{"preconditioning": "edm", "image_size": 8, "attention_sizes": (4,), **options})
    assert "\n" not in str(caught.value)


def test_wrong_tensors_are_named(tmp_path: Path) -> None:
    average = tree(make(NET))
    bias = average["Dense_1"].pop("bias")
    _refused(write(tmp_path, average), r"1 missing \(Dense_1.bias\); 0 unknown")
    average["Dense_1"] |= {"bias": bias, "extra": bias}
    _refused(write(tmp_path, average), r"0 missing; 1 unknown \(Dense_1.extra\)")
    del average["Dense_1"]["extra"]
    average["Dense_1"]["kernel"] = torch.zeros(64, 3)
    _refused(write(tmp_path, average), r"Dense_1.kernel gives \(3, 64\) where \(64, 64\) belongs")
    average["Dense_1"]["kernel"] = torch.zeros(64)
    _refused(write(tmp_path, average), r"Dense_1.kernel \(64,\) \(cannot be rearranged")
    del average["ResnetBlockBigGANpp_1"]["Conv_0"]["kernel"]
    _refused(write(tmp_path, average), "should hold ResnetBlockBigGANpp_1.Conv_0.kernel with 4 dimensions")


def test_other_options_and_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, tree(make(NET)))
    _refused(path, "preconditioning is 'vp'; it may be consistency or edm", preconditioning="vp")
    _refused(path, "missing .*AttnBlockpp_4", attention_sizes=(8, 4))
    _refused(write(tmp_path, {}), r"has no arrays under 'params_ema' \(it holds step, lr,")
    _refused(write(tmp_path, {"Conv_0": {"kernel": 3}}), "Conv_0.kernel is a int")
    chunks = {"__msgpack_chunked_array__": True, "shape": {"0": 4}, "chunks": {"0": torch.zeros(4)}}
    _refused(write(tmp_path, {"Conv_0": {"kernel": chunks}}), r"Conv_0.kernel has more than 2\*\*30 bytes")
    strange = array((2,), "float24", b"123456")
    _refused(write(tmp_path, {"Conv_0": {"kernel": strange}}), "an array of type float24")
    short = array((2,), "float32", b"1234")
    _refused(write(tmp_path, {"Conv_0": {"kernel": short}}), r"an array of 1 numbers for the shape \(2,\)")
    path.write_bytes(pack([1, 2]))
    _refused(path, "it holds a list")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_part_of_a_file_is_refused(tmp_path: Path, share: float) -> None:
    path = write(tmp_path, tree(make(NET)))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    _refused(path, re.escape(str(path)) + " is (cut short or no checkpoint of flax|empty)")
