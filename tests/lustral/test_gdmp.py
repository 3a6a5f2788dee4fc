"""GDMP against guided ancestral sampling as the original code has it, written down again over its own tables."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lustral.diffusion import EDMSchedule, LinearSchedule, VPSchedule
from lustral.diffusion.solvers import Variance
from lustral.purifiers import GDMP, MSEGuidance
from tests.contracts import SmoothDenoiser, VariedDenoiser, images, stream

SHAPE = (1, 4, 4)


def _tables(kept: list[int]) -> dict[str, list[float]]:
    """Betas, beta tilde and the rest of a diffusion of the ``kept`` indices of the 1000."""
    abar = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))[kept]
    before = np.append(1.0, abar[:-1])
    betas = 1.0 - abar / before
    tilde = betas * (1.0 - before) / (1.0 - abar)
    clipped = np.append(tilde[1], tilde[1:])
    columns = {"abar": abar, "before": before, "betas": betas, "tilde": tilde, "clipped": clipped}
    return {name: column.tolist() for name, column in columns.items()}


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
@pytest.mark.parametrize(
    ("kept", "options"),
    [
        ([0, 1, 2, 3, 4, 5], {"t_star": 6, "num_steps": 6, "noise_offset": 1}),
        ([0, 4, 8, 12, 16], {"t_star": 17, "num_steps": 5, "respacing": 250, "reference": "clean"}),
    ],
    ids=["cifar10", "imagenet"],
)
def test_gdmp_is_guided_ancestral_sampling(kept: list[int], options: dict[str, Any], variance: Variance) -> None:
    """Every step's guidance is multiplied by its own variance: learned; or beta, whose first entry is beta tilde of the
    second step (5.45e-5 where the steps are of one level); or beta tilde, 0 in the last step."""
    denoiser, table = VariedDenoiser(LinearSchedule(), SHAPE), _tables(kept)
    x, noise, scale, budget = images(3, SHAPE, dtype=torch.float64), stream(3), 2000.0, 8 / 255
    slowness = 2.0 * budget / (3.0 * scale)
    options = dict(options)
    reference = options.pop("reference", "noised")
    guidance = MSEGuidance(reference, 1)
    purifier = GDMP(denoiser, guidance, num_rounds=2, scale=scale, budget=budget, variance=variance, **options)
    origin = 2.0 * x - 1.0
    state, offset = origin, options.get("noise_offset", 0)
    for number in range(2):
        level = float(np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))[kept[-1] + offset])
        z = noise.fork("forward").normal(SHAPE, round=number, dtype=torch.float64)
        state = level**0.5 * state + (1.0 - level) ** 0.5 * z
        for key, i in enumerate(reversed(range(len(kept)))):
            abar, before, beta, tilde, clipped = (column[i] for column in table.values())
            mean, v = denoiser.mean_and_variance(state, torch.tensor(kept[i] + 1.0, dtype=torch.float64))
            mean = mean.clamp(-1, 1)
            mean = before**0.5 * beta / (1 - abar) * mean + (1 - beta) ** 0.5 * (1 - before) / (1 - abar) * state
            own: Tensor | float = tilde
            if variance == "large":
                own = beta if i else table["tilde"][1]
            elif variance == "learned":
                own = (v * np.log(beta) + (1 - v) * np.log(clipped)).exp()
            target = origin
            if reference != "clean":
                drawn = noise.fork("guide").normal(SHAPE, round=number, step=key, dtype=torch.float64)
                target = abar**0.5 * origin + (1 - abar) ** 0.5 * drawn
            gradient = (1 - abar) ** 0.5 / abar**0.5 / slowness * 2.0 * (target - state) / 16
            z = noise.fork("reverse").normal(SHAPE, round=number, step=key, dtype=torch.float64)
            state = mean + own * gradient + (i > 0) * torch.as_tensor(own).sqrt() * z
    expected = ((state + 1.0) / 2.0).clamp(0.0, 1.0)
    with torch.no_grad():
        found = purifier(x, noise).images[0]
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-9)
    assert float(((found > 0) & (found < 1)).double().mean()) > 0.1


def test_the_learned_variance_costs_no_second_call() -> None:
    denoiser, calls = VariedDenoiser(LinearSchedule(), SHAPE), []
    denoiser.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    purifier = GDMP(denoiser, MSEGuidance("noised", 1), 60, 3, 2, scale=20.0, variance="learned")
    purifier(images(2, SHAPE, dtype=torch.float64), stream(2))
    assert calls == [2] * 6


def test_the_pull_of_a_round_is_the_sum_of_its_steps() -> None:
    """2.61 at the published scale with one image a batch; the last step's variance is 5.45e-5, not 1e-4."""
    purifier = GDMP(SmoothDenoiser(LinearSchedule(), (3, 32, 32)), MSEGuidance("noised", 1))
    betas = np.linspace(1e-4, 0.02, 1000)[:36]
    abar = np.cumprod(1.0 - betas)
    variances = np.append(betas[1] * (1 - abar[0]) / (1 - abar[1]), betas[1:])
    slowness = 2.0 * (8 / 255) / (3.0 * 6e4)
    pull = float((variances * ((1 - abar) / abar) ** 0.5).sum() / slowness * 2 / 3072)
    assert abs(variances[0] - 5.45e-5) < 1e-7
    assert abs(pull - 2.61) < 1e-2
    assert abs(purifier.derived()["pull"] - pull) < 1e-6


def test_in_continuous_time_a_step_has_the_variance_that_its_noise_has() -> None:
    """There is no step to the clean image, so nothing is clipped: the factors are beta's."""
    purifier = GDMP(SmoothDenoiser(VPSchedule(), SHAPE), MSEGuidance("noised", 1), 60, 3)
    schedule, pull = purifier.denoiser.schedule, 0.0
    for t, s in itertools.pairwise(schedule.grid(60, 3)):
        beta = 1.0 - float((schedule.alpha(t) / schedule.alpha(s)).square())
        pull += beta * float(schedule.noise_ratio(t)) * 2 / 16 * 3 * 6e4 / 2 * 255 / 8
    assert abs(purifier.derived()["pull"] / pull - 1.0) < 1e-8


@pytest.mark.parametrize("variance", ["small", "large"])
def test_a_level_that_is_differentiated_meets_no_root_of_zero(variance: Variance) -> None:
    """One step from a level of its own to the clean image, where the variance is 0."""
    denoiser = SmoothDenoiser(EDMSchedule(), SHAPE)
    purifier = GDMP(denoiser, MSEGuidance("noised", 1), 300, 1, 1, scale=0.001, variance=variance)
    levels = torch.tensor([[280.0], [120.0]], dtype=torch.float64, requires_grad=True)
    out = purifier.walk(images(2, SHAPE, dtype=torch.float64), levels, stream(2), ()).images
    (gradient,) = torch.autograd.grad(out.sum(), levels)
    assert gradient.isfinite().all()
    assert gradient.abs().min() > 0
