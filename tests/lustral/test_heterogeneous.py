"""Heterogeneous noise against DiffPure, the public code's formulas, and closed forms on Gaussian data."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lustral.attacks import PGD, CrossEntropy, Engine
from lustral.defence import Defence
from lustral.diffusion import DDIM, LinearSchedule, NoiseSchedule, VPSchedule, from_diffusion, to_diffusion
from lustral.noise import NoiseStream
from lustral.purifiers import AttentionMask, ConstantMask, DiffPure, HeterogeneousNoise, Mask, Variant
from lustral.purifiers.masks import Activations
from lustral.purifiers.resampling import noised_further, two_stage_grid
from lustral.threat import ThreatModel
from tests.closed_form import GaussianDenoiser, alpha_bar
from tests.contracts import SeenClassifier, SmoothDenoiser, ToyClassifier, cases, images, stream

SHAPE = (1, 4, 4)


class Half(Mask):
    """The left half of every image."""

    def __call__(self, x: Tensor, size: tuple[int, int], activations: Activations, noise: NoiseStream) -> Tensor:
        return (torch.arange(size[1]) < size[1] // 2).to(x.dtype).expand(len(x), 1, *size).clone()


def _purifier(mask: Mask, schedule: NoiseSchedule | None = None, **options: Any) -> HeterogeneousNoise:
    given: dict[str, Any] = {"t_large": 200, "t_small": 50, "num_steps": 8, "num_resamples": 0, **options}
    return HeterogeneousNoise(SmoothDenoiser(schedule or LinearSchedule(), SHAPE).float(), mask, **given)


def _attentive(**options: Any) -> HeterogeneousNoise:
    return _purifier(AttentionMask(["conv"], tau=0.5), num_resamples=2, **options)


# What it is without a mask, or without a stage ----------------------------------------------------------------


@pytest.mark.parametrize("resample", ["multi_step", "one_hop", "fused"])
@pytest.mark.parametrize("compose", ["before", "after"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("schedule", [LinearSchedule(), VPSchedule()], ids=["linear", "vp"])
def test_a_mask_of_everything_without_resampling_is_diffpure(
    schedule: NoiseSchedule, eta: float, compose: Any, resample: Any
) -> None:
    purifier = _purifier(ConstantMask(), schedule, eta=eta, compose=compose, resample=resample)
    diffpure = DiffPure(purifier.denoiser, DDIM(eta), 200, 8)
    x = images(3, SHAPE)
    assert torch.equal(purifier(x, stream(3)).images, diffpure(x, stream(3)).images)


@pytest.mark.parametrize("num_steps", [5, (0, 5)])
def test_with_one_level_it_is_diffpure(num_steps: Any) -> None:
    """Whatever the mask and U."""
    purifier = _purifier(Half(), t_large=50, num_steps=num_steps, num_resamples=7, allow_inert=True)
    diffpure = DiffPure(purifier.denoiser, DDIM(), 50, 5)
    assert torch.equal(purifier(images(3, SHAPE), stream(3)).images, diffpure(images(3, SHAPE), stream(3)).images)


@pytest.mark.parametrize(("compose", "first"), [("after", 6), ("before", 5)])
def test_a_mask_of_nothing_is_diffpure_from_where_it_last_looked_at_the_image(compose: Any, first: int) -> None:
    """In stage 2 after composing at t_small; before it, one step of the grid earlier."""
    purifier = _purifier(ConstantMask(False), compose=compose)
    x, noise, grid = images(3, SHAPE), stream(3), purifier.grid
    z = noise.fork("known").normal(SHAPE, step=5)
    state = purifier.denoiser.schedule.perturb(to_diffusion(x), grid[first], z)
    for t, s in itertools.pairwise(grid[first:]):
        state = DDIM().step(purifier.denoiser, state, t, s, torch.zeros_like(state))
    torch.testing.assert_close(purifier(x, noise).images[0], from_diffusion(state), rtol=0, atol=1e-6)
    assert float(grid[6]) == 50


def test_no_resampling_is_the_same_in_every_manner() -> None:
    found = [
        _purifier(Half(), resample=how)(images(3, SHAPE), stream(3)).images
        for how in ("multi_step", "one_hop", "fused")
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


# The public code's formulas -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_fused_is_what_the_public_code_computes(rounds: int) -> None:
    """Its loop, with the noise of our streams; its unit steps, whose noises add up to one, are multiplied out."""
    purifier = _purifier(Half(), compose="before", resample="fused", num_resamples=rounds, num_steps=20).double()
    x, noise = images(2, SHAPE, dtype=torch.float64), stream(2)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar = torch.cat((torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, 0)))  # of t noising steps

    def drawn(name: str, step: int) -> Tensor:
        return noise.fork(name).normal(SHAPE, step=step, dtype=torch.float64)

    image, mask = 2 * x - 1, (torch.arange(4) < 2).double()
    x_t = abar[200].sqrt() * image + (1 - abar[200]).sqrt() * drawn("forward", 0)
    for i, (t, tau) in enumerate(itertools.pairwise(range(200, -1, -10))):
        if tau >= 1000 * 0.05:
            k = abar[t].sqrt() * image + (1 - abar[t]).sqrt() * drawn("known", i)
            x_t = mask * x_t + (1 - mask) * k
            alpha, variance = 1.0, 0.0
            for u in range(1, rounds + 1):
                a = float(1 - betas[t + u - 1])
                alpha, variance = alpha * a, a * variance + 1 - a
            x_t = alpha**0.5 * x_t + variance**0.5 * drawn("resample", i)
            t = t + rounds
        with torch.no_grad():
            x_0 = purifier.denoiser(x_t, torch.tensor(float(t)))
        e = (x_t - abar[t].sqrt() * x_0) / (1 - abar[t]).sqrt()
        x_t = abar[tau].sqrt() * (x_t - (1 - abar[t]).sqrt() * e) / abar[t].sqrt() + (1 - abar[tau]).sqrt() * e
    torch.testing.assert_close(purifier(x, noise).images[0], (x_t + 1) / 2, rtol=0, atol=1e-12)


def test_noise_in_one_go_is_in_law_that_of_all_steps() -> None:
    def of(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64)

    mean, variance = 0.7, 0.0
    for t in range(101, 111):
        keep = alpha_bar("discrete", t) / alpha_bar("discrete", t - 1)
        mean, variance = keep**0.5 * mean, keep * variance + 1 - keep
    image, noise = of(0.7).view(1, 1, 1, 1), of(1.0).view(1, 1, 1, 1)
    found = noised_further(LinearSchedule(), image, of(100.0), of(110.0), noise)
    assert float(found) == pytest.approx(mean + variance**0.5, abs=1e-12)


@pytest.mark.parametrize("compose", ["before", "after"])
def test_one_hop_of_one_step_is_one_step(compose: Any) -> None:
    """On the grid of all levels, inside a mask of everything."""
    options = {"t_large": 30, "t_small": 20, "num_steps": 30, "num_resamples": 1, "compose": compose, "eta": 1.0}
    found = [
        _purifier(ConstantMask(), resample=how, **options)(images(3, SHAPE), stream(3)).images
        for how in ("multi_step", "one_hop")
    ]
    assert torch.equal(*found)


# Noise levels on Gaussian data --------------------------------------------------------------------------------


def _gain(t: float, s: float, variance: float) -> float:
    """x_s / x_t of a DDIM step with eta = 0, for pixels that are N(0, variance)."""
    abar_t, abar_s = alpha_bar("discrete", t), alpha_bar("discrete", s)
    x_0 = abar_t**0.5 * variance / (abar_t * variance + 1 - abar_t)
    eps = (1 - abar_t**0.5 * x_0) / (1 - abar_t) ** 0.5
    return abar_s**0.5 * x_0 + (1 - abar_s) ** 0.5 * eps


def _gains(times: list[float], variance: float) -> float:
    return float(np.prod([_gain(t, s, variance) for t, s in itertools.pairwise(times)]))


def _measured(mask: Mask, n: int = 4000, variance: float = 0.25, **options: Any) -> tuple[Tensor, Tensor]:
    """The variance of the purified pixels in [-1, 1], and their derivative, (2, 2) each: on the left inside."""
    denoiser = GaussianDenoiser(LinearSchedule(), np.zeros(4), variance * np.eye(4))
    given: dict[str, Any] = {"t_large": 200, "t_small": 50, "num_steps": 20, "num_resamples": 0, **options}
    purifier = HeterogeneousNoise(denoiser, mask, **given)
    x = images(1, (1, 2, 2), dtype=torch.float64).expand(n, -1, -1, -1)
    with torch.no_grad():
        found = to_diffusion(purifier(x, stream(1).repeat(n)).images[0])
    leaf = x[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(purifier(leaf, stream(1)).images.sum(), leaf)
    return found.var(0)[0], gradient[0, 0]


EVEN = [float(t) for t in range(200, -1, -10)]


@pytest.mark.parametrize(("compose", "last"), [("after", 15), ("before", 14)])
def test_inside_and_outside_have_their_noise_levels(compose: Any, last: int) -> None:
    """Without resampling each pixel's noise is that of its level, shrunk by the steps that follow."""
    variance, gradient = _measured(Half(), compose=compose)
    for column, times in ((0, EVEN), (1, EVEN[last:])):
        abar = alpha_bar("discrete", times[0])
        shrunk = _gains(times, 0.25)
        torch.testing.assert_close(gradient[:, column].numpy(), np.full(2, abar**0.5 * shrunk), rtol=1e-9, atol=0)
        np.testing.assert_allclose(variance[:, column].numpy(), (1 - abar) * shrunk**2, rtol=0.1)  # 4.5 errors
    assert variance[:, 0].min() > 1.5 * variance[:, 1].max()
    assert gradient[:, 0].max() < 0.9 * gradient[:, 1].min()


def test_the_noised_image_has_both_noises() -> None:
    """Equation 5."""
    purifier, n = _purifier(Half()), 4000
    x = images(1, SHAPE).expand(n, -1, -1, -1)
    found = to_diffusion(purifier(x, stream(1).repeat(n), wants=["noised"]).trace["noised"]).var(0)[0]
    for columns, t in ((found[:, :2], 200), (found[:, 2:], 50)):
        np.testing.assert_allclose(columns.numpy(), 1 - alpha_bar("discrete", t), rtol=0.1)
    assert purifier.derived() == {
        "sigma": pytest.approx((1 - alpha_bar("discrete", 200)) ** 0.5, abs=1e-6),
        "sigma_small": pytest.approx((1 - alpha_bar("discrete", 50)) ** 0.5, abs=1e-6),
        "network_calls": 8,
    }


def test_on_the_published_surrogates_grid_the_mask_has_no_effect() -> None:
    """Two steps from 0.2: in the one of stage 1 both sides are noised to the same level."""
    options = {"compose": "before", "resample": "fused", "num_resamples": 3, "t_small": 100}
    variance, gradient = _measured(Half(), num_steps=2, allow_inert=True, **options)
    torch.testing.assert_close(gradient[:, 0], gradient[:, 1], rtol=1e-9, atol=0)
    torch.testing.assert_close(variance[:, 0].mean(), variance[:, 1].mean(), rtol=0.1, atol=0)
    with pytest.raises(ValueError, match="Only 1 of the reverse steps end at t_small = 100"):
        _measured(Half(), num_steps=2, **options)
    variance, gradient = _measured(Half(), num_steps=100, **options)
    assert variance[:, 0].min() > 1.5 * variance[:, 1].max()


def test_one_hop_is_many_steps_in_law() -> None:
    """On the grid of all levels; the variance of what was noised and denoised U = 10 times, step by step or in one
    go, with a mask of everything on data N(0, 1)."""
    options = {"t_large": 60, "t_small": 50, "num_steps": 60, "num_resamples": 10, "variance": 1.0}
    found = {how: _measured(ConstantMask(), resample=how, **options) for how in ("multi_step", "one_hop")}
    plain = _measured(ConstantMask(), **{**options, "num_resamples": 0})
    variances = {how: float(variance.mean()) for how, (variance, _) in found.items()}
    assert variances["one_hop"] == pytest.approx(variances["multi_step"], rel=0.05)
    assert variances["one_hop"] > 2 * float(plain[0].mean())
    torch.testing.assert_close(found["one_hop"][1], found["multi_step"][1], rtol=0.01, atol=0)


# The mask and the attack --------------------------------------------------------------------------------------


def test_the_mask_changes_the_image_and_the_attacks_gradient() -> None:
    x, y = images(5, SHAPE), cases(5).labels
    seen = SeenClassifier(shape=SHAPE)
    found = []
    for mask in (AttentionMask(["conv"], tau=0.5), ConstantMask(), ConstantMask(False)):
        answer = Engine(Defence(seen, _purifier(mask)), 8).answer(x, y, stream(5), CrossEntropy(), 2)
        found.append((Defence(seen, _purifier(mask))(x, stream(5)).logits, answer.gradient))
    for (logits, gradient), (other, others) in itertools.combinations(found, 2):
        assert not torch.allclose(logits, other, rtol=1e-2)
        assert not torch.allclose(gradient, others, rtol=1e-2)


def test_to_the_exact_gradient_a_hard_mask_is_a_constant() -> None:
    purifier = _attentive()
    purifier.bind(SeenClassifier(shape=SHAPE))
    x = images(3, SHAPE)
    with torch.no_grad():
        context = purifier.prepare(x, stream(3))
    found = []
    for variant, held in (
        (purifier, None),
        (purifier, context),
        (Variant({"mask.rounding": False}).of(purifier), None),
    ):
        variant.bind(SeenClassifier(shape=SHAPE))
        leaf = x.clone().requires_grad_()
        found.append(torch.autograd.grad(variant(leaf, stream(3), context=held).images.square().sum(), leaf)[0])
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], rtol=1e-2)


@pytest.mark.parametrize(
    "mode",
    [
        {"surrogate": Variant({"mask.rounding": False})},
        {"surrogate": Variant({"mask.rounding": "straight_through"})},
        {"surrogate": Variant({"t_small": 200, "allow_inert": True})},
        {"surrogate": Variant({"num_steps": 2, "compose": "before", "resample": "fused", "allow_inert": True})},
        {"context": "clean"},
    ],
    ids=["relaxed", "straight_through", "uniform", "published", "frozen"],
)
def test_attacks_look_at_the_mask_in_their_ways(mode: dict[str, Any]) -> None:
    engine = Engine(Defence(SeenClassifier(shape=SHAPE), _attentive()), 8)
    attack = PGD(2, eot=2, selection_draws=2, **mode)
    assert not attack.sees_the_defence
    result = attack(engine, cases(4), ThreatModel("linf", "24/255"), stream(4))
    assert not result.failed.any()
    assert (result.distance > 0).all()


def test_what_the_trace_tells_of_the_mask() -> None:
    purifier = _attentive()
    purifier.bind(SeenClassifier(shape=SHAPE))
    leaf = images(4, SHAPE).requires_grad_()
    trace = purifier(leaf, stream(4), wants=["mask", "area", "attention"]).trace
    assert torch.equal(trace["mask"], (trace["attention"] >= 0.5).float())
    assert torch.equal(trace["area"], trace["mask"].double().mean((1, 2, 3)))
    assert torch.autograd.grad(trace["attention"].square().sum(), leaf)[0].abs().max() > 0
    assert not trace["mask"].requires_grad
    assert "attention" not in _purifier(ConstantMask()).offers


def test_a_victim_without_the_stage_is_refused_when_it_is_bound() -> None:
    with pytest.raises(ValueError, match="looks at the stage 'conv', which ToyClassifier does not have"):
        Defence(ToyClassifier(shape=SHAPE), _attentive())
    with pytest.raises(ValueError, match="was shown none"):
        _attentive()(images(2, SHAPE), stream(2))


def test_of_larger_images_the_mask_is_made_at_the_purifiers_size() -> None:
    denoiser = SmoothDenoiser(LinearSchedule(), (1, 6, 6)).float()
    purifier = HeterogeneousNoise(denoiser, AttentionMask(["conv"], None, 0.25), num_steps=8, resize_to=6)
    purifier.bind(SeenClassifier(shape=SHAPE))
    purified = purifier(images(2, SHAPE), stream(2), wants=["mask", "noised"])
    assert purified.trace["mask"].shape == (2, 1, 6, 6)
    assert (purified.trace["mask"].sum((1, 2, 3)) == 9).all()
    assert purified.images.shape[1:] == purified.trace["noised"].shape == (2, *SHAPE)


# The grid and the calls ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resample", "rounds", "calls"),
    [("multi_step", 3, 6 * 4 + 2), ("one_hop", 3, 6 * 2 + 2), ("one_hop", 0, 8), ("fused", 3, 8)],
)
def test_network_calls_are_counted(resample: Any, rounds: int, calls: int) -> None:
    purifier, counted = _purifier(Half(), resample=resample, num_resamples=rounds), []
    purifier.denoiser.register_forward_hook(lambda *_: counted.append(1))
    with torch.no_grad():
        purifier(images(2, SHAPE), stream(2))
    assert len(counted) == calls == purifier.derived()["network_calls"]


def test_a_grid_of_two_stages_meets_the_small_level() -> None:
    assert two_stage_grid(VPSchedule(), 200, 50, (4, 2)).tolist() == [200, 162.5, 125, 87.5, 50, 25, 0.01]
    assert two_stage_grid(LinearSchedule(), 200, 50, (4, 2)).tolist() == [200, 163, 125, 88, 50, 25, 0]
    assert two_stage_grid(LinearSchedule(), 200, 50, 8).tolist() == [200, 175, 150, 125, 100, 75, 50, 25, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t_small": 0}, "t_small = 0 and t_large = 200"),
        ({"t_small": 201}, "1 <= t_small <= t_large"),
        ({"compose": "both"}, "compose is 'both'; it may be before, after"),
        ({"resample": "repaint"}, "resample is 'repaint'; it may be multi_step, one_hop, fused"),
        ({"num_resamples": -1}, "num_resamples is -1"),
        ({"jump_length": 0.0}, "jump_length 0.0"),
        ({"num_resamples": 900}, "are more than 1000"),
        ({"num_resamples": 1, "jump_length": 0.5}, "no whole number of the 1000 levels"),
        ({"eta": 1.5}, "eta is 1.5"),
        ({"num_steps": 300}, "num_steps is 300"),
        ({"num_steps": (200, 2)}, "fewer levels between"),
        ({"num_steps": (0, 2)}, "it takes at least 1 step"),
        ({"num_steps": (3, 2)}, "Only 3 of the reverse steps"),
        ({"resize_to": 6}, "the denoiser works at 4 pixels"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _purifier(Half(), **options)
