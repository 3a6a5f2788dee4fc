"""The U-Net of ADM and improved diffusion: published sizes, labels, the learned variance, and second derivatives."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from lustral.diffusion import Denoiser
from lustral.networks import ADMDenoiser, UNetDenoiser, load_network, save_network
from tests.contracts import central_differences, generator, randomise, relative_error

SMALL: dict[str, Any] = {
    "image_size": 4,
    "channels": 1,
    "base_channels": 32,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention_sizes": (2,),
    "head_width": 16,
}


def _small(**changes: Any) -> ADMDenoiser:
    network = ADMDenoiser(**(SMALL | changes))
    randomise(network, 0.2)
    return network.double().eval().requires_grad_(False)


def _states(denoiser: Denoiser, batch: int) -> Tensor:
    return torch.randn(batch, *denoiser.image_shape, generator=generator(), dtype=torch.float64)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ("diffusion/imagenet_adm256", 552_814_086),
        ("diffusion/cifar10_iddpm", 52_546_438),
        ("train/cifar10_iddpm_diffusion", 52_546_438),
        ("train/svhn_diffusion", 35_746_307),
    ],
)
def test_configured_networks_have_the_published_sizes(config: str, count: int) -> None:
    part = yaml.safe_load(Path(f"configs/{config}.yaml").read_text())
    part = part["model"]["init_args"]["denoiser"] if "model" in part else part
    kind = {f"lustral.networks.{cls.__name__}": cls for cls in (ADMDenoiser, UNetDenoiser)}[part["class_path"]]
    with torch.device("meta"):
        network = kind(**part["init_args"] | {"weights": None})
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_the_defaults_are_the_imagenet_network() -> None:
    options = yaml.safe_load(Path("configs/diffusion/imagenet_adm256.yaml").read_text())["init_args"]
    with torch.device("meta"):
        network = ADMDenoiser()
    for name, value in options.items():
        if name != "weights":
            assert getattr(network, name) == value


def test_the_consistency_network_of_64_pixels_has_the_published_size() -> None:
    """About 296 M with the class embedding that the unconditional one has not: 1000 classes of 768 numbers."""
    with torch.device("meta"):
        network = ADMDenoiser(64, 3, 192, (1, 2, 3, 4), 3, learned_variance=False, preconditioning="consistency")
    assert sum(parameter.numel() for parameter in network.parameters()) + 768_000 == 295_899_267


@pytest.mark.parametrize(
    ("preconditioning", "times", "labels"),
    [
        ("linear", [1.0, 100.0, 1000.0], [0.0, 99.0, 999.0]),
        ("cosine", [0.25, 117.5, 1000.0], [0.0, 117.25, 999.75]),
        ("edm", [1.0, 1000.0], [250 * math.log(0.002), 250 * math.log(80.0)]),
        ("consistency", [1.0, 1000.0], [250 * math.log(0.002), 250 * math.log(80.0)]),
    ],
)
def test_the_network_sees_the_label_that_it_was_trained_with(
    preconditioning: str, times: list[float], labels: list[float]
) -> None:
    denoiser, seen = _small(preconditioning=preconditioning), []
    denoiser.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    denoiser(_states(denoiser, len(times)), torch.tensor(times, dtype=torch.float64))
    torch.testing.assert_close(seen[0], torch.tensor(labels, dtype=torch.float64), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("preconditioning", ["linear", "cosine"])
def test_mean_and_variance_come_from_one_call(preconditioning: str) -> None:
    denoiser, calls = _small(preconditioning=preconditioning), []
    x, t = _states(denoiser, 3), torch.tensor([1.0, 100.0, 900.0], dtype=torch.float64)
    expected = denoiser(x, t)
    denoiser.network.register_forward_hook(lambda module, inputs, output: calls.append(output[0]))
    mean, v = denoiser.mean_and_variance(x, t)
    assert len(calls) == 1
    assert torch.equal(mean, expected)
    torch.testing.assert_close(v, 0.5 + 0.5 * calls[0][:, 1:])
    assert denoiser.learns_variance


def test_a_network_without_a_variance_says_so() -> None:
    denoiser = _small(learned_variance=False)
    assert not denoiser.learns_variance
    with pytest.raises(ValueError, match="ADMDenoiser has learned no variance: choose variance small or large"):
        denoiser.mean_and_variance(_states(denoiser, 1), torch.tensor(100.0))


@pytest.mark.parametrize("kind", ["adm", "adm, several heads of different width", "unet"])
def test_second_derivatives_are_right(kind: str) -> None:
    """Of the length of the input gradient, as guided purifiers need them: fused attention would have none."""
    if kind == "unet":
        denoiser: Denoiser = UNetDenoiser(4, 1, (8, 16), 1, (False, True), norm_groups=4, dropout=0.0)
        randomise(denoiser, 0.2)
        denoiser.double().eval().requires_grad_(False)
    else:
        options = {} if kind == "adm" else {"attention_sizes": (4, 2), "head_width": None, "num_heads": 2}
        denoiser = _small(**options)
    x, t = _states(denoiser, 1), torch.tensor(300.0, dtype=torch.float64)
    weight = _states(denoiser, 1).flip(-1)

    def steepness(z: Tensor, create_graph: bool = False) -> Tensor:
        with torch.enable_grad():
            z = z if create_graph else z.detach().requires_grad_()
            out = (denoiser(z, t) * weight).flatten(1).sum(1)
            (gradient,) = torch.autograd.grad(out.sum(), z, create_graph=create_graph)
        return gradient.square().flatten(1).sum(1)

    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(steepness(leaf, create_graph=True).sum(), leaf)
    assert relative_error(found, central_differences(steepness, x)) < 1e-6


def test_a_call_for_a_gradient_gives_the_same_bits() -> None:
    """A step that is run again with a graph must be the step that was run without one."""
    denoiser = _small(attention_sizes=(4, 2)).float()
    x, t = _states(denoiser, 3).float(), torch.tensor([1.0, 100.0, 900.0])
    with torch.no_grad():
        without = denoiser(x, t)
    assert torch.equal(denoiser(x.requires_grad_(), t).detach(), without)


def test_heads_change_the_function() -> None:
    """Neither option may be ignored: the tensors are the same with any number of heads."""
    x, t = torch.randn(1, 1, 4, 4, generator=generator(), dtype=torch.float64), torch.tensor(100.0)
    options = [{"head_width": 64}, {"head_width": 32}, {"head_width": None, "num_heads": 4}]
    one, two, four = (_small(**option).noise(x, t) for option in options)
    assert min(float((a - b).abs().max()) for a, b in ((one, two), (two, four), (one, four))) > 1e-4
    torch.testing.assert_close(_small(head_width=None, num_heads=2).noise(x, t), two)


def test_a_weights_file_alone_rebuilds_the_network(tmp_path: Path) -> None:
    network = _small(head_width=None, num_heads=4, resample="conv", preconditioning="cosine").float()
    rebuilt = load_network(save_network(network, tmp_path / "weights.safetensors")).eval()
    x, t = _states(network, 2).float(), torch.tensor([10.0, 500.0])
    with torch.no_grad():
        assert torch.equal(rebuilt(x, t), network(x, t))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preconditioning": "vp"}, "preconditioning is 'vp'; an ADM's may be linear, cosine, edm, consistency"),
        ({"resample": "fir"}, "resample is 'fir'; it may be residual or conv"),
        ({"multipliers": (2, 4)}, r"multipliers are \[2, 4\]; the first must be 1"),
        ({"multipliers": ()}, r"multipliers are \[\]; the first must be 1"),
        ({"base_channels": 48}, "base_channels is 48; it must be a multiple of 32"),
        ({"image_size": 5}, "image_size 5 cannot be halved 1 times"),
        ({"attention_sizes": (16, 2)}, r"attention_sizes has \[16\], but the resolutions of this network are \[4, 2\]"),
        ({"num_heads": 4}, "head_width is 16 and num_heads is 4; give exactly one of them"),
        ({"head_width": None}, "head_width is None and num_heads is None; give exactly one of them"),
        ({"head_width": 24}, "head_width is 24; it must divide the 64 channels"),
        ({"head_width": None, "num_heads": 0}, "num_heads is 0; it must divide the 64 channels"),
    ],
)
def test_impossible_networks_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _small(**changes)
