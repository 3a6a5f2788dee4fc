"""Kernels and squared MMDs against straight float64 sums, closed forms and central differences."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lustral.detectors import (
    DeepKernel,
    GaussianKernel,
    Kernel,
    SemanticKernel,
    load_kernel_state,
    mmd,
    power_objective,
    save_kernel,
)
from lustral.detectors.mmd import biased, finite_power, grams, null_deviation, paired, unbiased, variance
from lustral.networks import ConvFeatures, Penultimate, WideResNet
from tests.contracts import generator, images, randomise, stream


class Features(nn.Module):
    """Smooth features in float64."""

    weights = None

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 5, dtype=torch.float64)
        randomise(self, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x.flatten(1).double()))


def kernels() -> list[Kernel]:
    return [
        GaussianKernel(3.0),
        GaussianKernel(0.7, Features()),
        SemanticKernel(Features(), 0.1, 2.0, 5.0),
        SemanticKernel(Features(), 0.1, 2.0, 5.0, "reference"),
        DeepKernel(Features(), 0.3, 1.5, 4.0),
    ]


def straight(kernel: Kernel, x: Tensor, y: Tensor) -> np.ndarray:
    """The kernel, value by value."""
    found = np.zeros((len(x), len(y)))
    features = getattr(kernel, "features", None) or getattr(kernel, "network", None)
    for i in range(len(x)):
        for j in range(len(y)):
            pixels = ((x[i].double() - y[j].double()).numpy() ** 2).sum()
            inner = 0.0
            if features is not None:
                inner = float((features(x[i : i + 1]) - features(y[j : j + 1])).detach().square().sum())
            numbers = kernel.numbers()
            if isinstance(kernel, GaussianKernel):
                found[i, j] = np.exp(-(pixels if features is None else inner) / numbers["bandwidth"])
            else:
                eps = numbers["eps"]
                value = (1 - eps) * np.exp(-inner / numbers["feature_bandwidth"]) + eps
                found[i, j] = value * np.exp(-pixels / numbers["pixel_bandwidth"])
    return found


@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: type(kernel).__name__)
def test_values_are_those_of_straight_sums(kernel: Kernel) -> None:
    x, y = images(6), images(6, seed=1)
    k_xx, k_yy, k_xy = (straight(kernel, a, b) for a, b in ((x, x), (y, y), (x, y)))
    with torch.no_grad():
        found = grams(kernel, kernel.embed(x), kernel.embed(y))
        for mine, theirs in zip(found, (k_xx, k_yy, k_xy), strict=True):
            assert np.abs(mine.numpy() - theirs).max() < 1e-12
        n, off = 6, ~np.eye(6, dtype=bool)
        u = k_xx[off].sum() / 30 + k_yy[off].sum() / 30 - 2 * k_xy.mean()
        v = k_xx.mean() + k_yy.mean() - 2 * k_xy.mean()
        p = (k_xx + k_yy - 2 * k_xy)[off].sum() / 30
        h = k_xx + k_yy - k_xy - k_xy.T
        var = 4 * (np.mean([h[i].mean() ** 2 for i in range(n)]) - h.mean() ** 2)
        for function, value in ((unbiased, u), (biased, v), (paired, p), (variance, var)):
            assert abs(float(function(*found)) - value) < 1e-10, function.__name__
        assert abs(float(power_objective(*found)) - (p + 1e-8) / np.sqrt(var + 1e-8)) < 1e-10
        assert abs(float(mmd(kernel, x, y)) - u) < 1e-10
        assert abs(float(mmd(kernel, x, y, "biased")) - v) < 1e-10


def test_a_reference_may_have_another_size() -> None:
    kernel, x, y = GaussianKernel(3.0), images(7), images(3, seed=1)
    k_xx, k_yy, k_xy = (straight(kernel, a, b) for a, b in ((x, x), (y, y), (x, y)))
    value = (k_xx.sum() - 7) / 42 + (k_yy.sum() - 3) / 6 - 2 * k_xy.mean()
    assert abs(mmd(kernel, x, y).item() - value) < 1e-10
    with pytest.raises(ValueError, match="7 and 3 images, but pairs"):
        power_objective(*grams(kernel, kernel.embed(x), kernel.embed(y)))
    with pytest.raises(ValueError, match="at least two images"):
        mmd(kernel, x, y[:1])
    assert torch.isfinite(mmd(kernel, x, y[:1], "biased"))


@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: type(kernel).__name__)
def test_no_gradient_is_lost(kernel: Kernel) -> None:
    """Also where two images are equal, whose squared distance may come out as -1e-17."""
    x, y = images(4, dtype=torch.float64), images(4, seed=1, dtype=torch.float64)
    y[0] = x[0]

    def objective(y: Tensor) -> Tensor:
        return power_objective(*grams(kernel, kernel.embed(x), kernel.embed(y)))

    moved = y.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(moved), moved)
    direction = torch.randn(y.shape, generator=generator(3), dtype=torch.float64)
    h = 1e-5
    with torch.no_grad():
        difference = (objective(y + h * direction) - objective(y - h * direction)) / (2 * h)
    assert float((gradient * direction).sum()) == pytest.approx(float(difference), rel=1e-6)
    for name, raw in kernel.named_parameters():
        if not name.startswith("scales"):
            continue
        (slope,) = torch.autograd.grad(objective(y), raw)
        before = raw.detach().clone()
        with torch.no_grad():
            ends = []
            for step in (h, -h):
                raw.copy_(before + step)
                ends.append(float(objective(y)))
            raw.copy_(before)
        assert float(slope) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-5, abs=1e-9), name


def test_the_unbiased_estimate_has_the_closed_mean_of_a_shift() -> None:
    """For N(0, I) and N(d, I) and exp(-r^2 / b): 2 (1 + 4 / b)^(-D / 2) (1 - exp(-|d|^2 / (b + 4)))."""
    groups, n, b = 400, 8, 6.0
    x, y = (stream(groups * n, seed).normal((1, 2, 2), dtype=torch.float64) for seed in (0, 1))
    y = y + 0.4
    kernel = GaussianKernel(b)
    ex, ey = ({"vectors": kernel.embed(each)["vectors"].view(groups, n, 4)} for each in (x, y))
    with torch.no_grad():
        k = grams(kernel, ex, ey)
        u, v = unbiased(*k), biased(*k)
    value = 2 * (1 + 4 / b) ** -2 * (1 - np.exp(-4 * 0.16 / (b + 4)))
    assert abs(float(u.mean()) - value) < 4 * float(u.std()) / groups**0.5
    floor = 2 / n * (1 - (1 + 4 / b) ** -2)  # the mean of the biased one is larger by (2 / n) (1 - E k)
    assert abs(float(v.mean()) - value - floor) < 4 * float(v.std()) / groups**0.5
    with torch.no_grad():
        null = unbiased(*grams(kernel, ex, {"vectors": ex["vectors"].roll(1, 0)}))
        pool = {"vectors": ex["vectors"].reshape(-1, 4)[:800]}
        halves = ({"vectors": part} for part in pool["vectors"].split(400))
        deviation = float(null_deviation(*grams(kernel, *halves), n))
    assert deviation == pytest.approx(float(null.std()), rel=0.1)


def test_the_power_of_a_finite_test_falls_with_its_size_and_tends_to_the_objective() -> None:
    kernel = SemanticKernel(Features(), 0.1, 2.0, 5.0)
    x, y = images(40), (images(40, seed=1) * 0.9)
    with torch.no_grad():
        k = grams(kernel, kernel.embed(x), kernel.embed(y))
        found = [float(finite_power(*k, n)) for n in (5, 20, 100, 10**8)]
        limit = float(unbiased(*k) / variance(*k).sqrt()) * 1e4
    assert found == sorted(found)
    assert found[-1] == pytest.approx(limit, rel=1e-3)


def test_open_bandwidths_take_the_median_heuristic() -> None:
    kernel, x, y = SemanticKernel(Features()), images(6), images(5, seed=1)
    with pytest.raises(ValueError, match="feature_bandwidth is open"):
        kernel(x, y)
    kernel.adapt(x, y)
    pixels = [float((a - b).double().square().sum()) for a in x for b in y]
    assert kernel.numbers()["pixel_bandwidth"] == pytest.approx(np.sort(pixels)[(len(pixels) - 1) // 2], rel=1e-6)
    before = kernel.numbers()
    kernel.adapt(x + 1, y)  # they are open no more
    assert kernel.numbers() == before
    same = GaussianKernel()
    same.adapt(x, x)
    others = [float((x[i] - x[j]).double().square().sum()) for i in range(6) for j in range(6) if i != j]
    assert same.numbers()["bandwidth"] == pytest.approx(np.sort(others)[(len(others) - 1) // 2], rel=1e-6)
    with pytest.raises(ValueError, match="median squared distance is 0"):
        GaussianKernel().adapt(x[:1].expand(4, -1, -1, -1), x[:1].expand(3, -1, -1, -1))


def test_kernels_are_written_and_read_with_the_identity_of_their_features(tmp_path: Path) -> None:
    def features(seed: int) -> Penultimate:
        network = WideResNet(10, 1, 3, 1, 8)
        randomise(network, 0.1, seed)
        return Penultimate(network)

    x = images(4, (1, 8, 8))
    kernel = SemanticKernel(features(0), 0.1, 2.0, 5.0)
    kernel.train()
    assert not kernel.features.training, "batch statistics would couple images"
    assert not any("features" in name for name in kernel.state_dict()), "a frozen network has a file of its own"
    path = save_kernel(kernel, tmp_path / "kernel.safetensors", {"step": "3"})
    again = SemanticKernel(features(0), weights=str(path))
    assert torch.equal(again(x, x), kernel(x, x))
    with pytest.raises(ValueError, match="trained on other features than Penultimate"):
        SemanticKernel(features(1), weights=str(path))
    with pytest.raises(ValueError, match="another parametrisation: log there and reference here"):
        SemanticKernel(features(0), parametrisation="reference", weights=str(path))
    with pytest.raises(FileNotFoundError, match="no kernel file"):
        GaussianKernel(weights=str(tmp_path / "none.safetensors"))
    deep = DeepKernel(ConvFeatures(1, 8, (4, 8), 6), 0.1, 2.0, 5.0).eval()
    path = save_kernel(deep, tmp_path / "deep.safetensors")
    assert torch.equal(DeepKernel(ConvFeatures(1, 8, (4, 8), 6), weights=str(path)).eval()(x, x), deep(x, x))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"eps": 1.0}, "eps of the kernel is 1.0"), ({"pixel_bandwidth": -1.0}, "pixel_bandwidth of the kernel is -1.0")],
)
def test_impossible_scales_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SemanticKernel(Features(), **options)


def test_a_file_with_an_impossible_bandwidth_is_refused(tmp_path: Path) -> None:
    """The published parametrisation may train the first bandwidth through zero."""
    bad, good = (SemanticKernel(Features(), 0.1, 2.0, 5.0, "reference") for _ in range(2))
    with torch.no_grad():
        bad.scales.get_parameter("feature_bandwidth").fill_(-3.0)
    path = save_kernel(bad, tmp_path / "kernel.safetensors")
    with pytest.raises(ValueError, match="whose feature_bandwidth is not positive"):
        load_kernel_state(good, path)
    assert good.numbers()["feature_bandwidth"] == 2.0
