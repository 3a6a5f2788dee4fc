"""Solvers: one contract for all; on Gaussian data the formulas, the exact law and the order of convergence.

A new solver joins by one row in `SOLVERS`.
"""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lustral.diffusion import (
    DDIM,
    Ancestral,
    Denoiser,
    EulerMaruyama,
    FlowEuler,
    Heun,
    LinearSchedule,
    Solver,
    VPSchedule,
)
from tests import closed_form
from tests.closed_form import DIAGONAL, FULL, MEAN, SCHEDULES, Affine, GaussianDenoiser, alpha_bar
from tests.contracts import SmoothDenoiser, central_differences, generator, relative_error

# name: (solver, its schedules, the independent formula of its step)
SOLVERS: dict[str, tuple[Solver, tuple[str, ...], Callable[..., Affine]]] = {
    "euler_maruyama": (EulerMaruyama(), ("vp",), closed_form.euler_maruyama_step),
    "ddim": (DDIM(), ("vp", "discrete"), closed_form.ddim_step(0.0)),
    "ddim_half": (DDIM(eta=0.5), ("vp", "discrete"), closed_form.ddim_step(0.5)),
    "ddim_full": (DDIM(eta=1.0), ("vp", "discrete"), closed_form.ddim_step(1.0)),
    "ancestral_small": (Ancestral("small"), ("vp", "discrete"), closed_form.ancestral_step("small")),
    "ancestral_large": (Ancestral("large"), ("vp", "discrete"), closed_form.ancestral_step("large")),
}
ON_SCHEDULES = [(name, schedule) for name, (_, schedules, _) in SOLVERS.items() for schedule in schedules]
ALSO_CLIPPED: dict[str, Solver] = {
    **{name: row[0] for name, row in SOLVERS.items()},
    "clipped": Ancestral(clip_denoised=True),
    "flow": FlowEuler(),
    "heun": Heun(),
    "heun_with_churn": Heun(churn=0.3),
}


def _states(batch: int, dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (1, 4, 4)) -> Tensor:
    return torch.randn(batch, *shape, generator=generator(1), dtype=torch.float64).to(dtype)


def _time(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("name", ALSO_CLIPPED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_keeps_shape_and_dtype_and_repeats_itself(name: str, dtype: torch.dtype) -> None:
    solver, denoiser = ALSO_CLIPPED[name], SmoothDenoiser(VPSchedule()).to(dtype)
    x, noise = _states(5, dtype), _states(5, dtype).flip(0)
    out = solver.step(denoiser, x, _time(100), _time(80), noise)
    assert out.shape == x.shape
    assert out.dtype == dtype
    assert torch.equal(out, solver.step(denoiser, x, _time(100), _time(80), noise))


@pytest.mark.parametrize("name", ALSO_CLIPPED)
def test_a_step_calls_the_network_once_and_heun_twice(name: str) -> None:
    denoiser, calls = SmoothDenoiser(VPSchedule()), []
    denoiser.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    ALSO_CLIPPED[name].step(denoiser, _states(3), _time(100), _time(80), _states(3))
    assert calls == ([3, 3] if name.startswith("heun") else [3])


@pytest.mark.parametrize("name", ALSO_CLIPPED)
def test_noise_matters_exactly_where_the_solver_says_so(name: str) -> None:
    solver, denoiser, x = ALSO_CLIPPED[name], SmoothDenoiser(VPSchedule()), _states(3)
    outs = [solver.step(denoiser, x, _time(100), _time(80), k * torch.ones_like(x)) for k in (0, 1)]
    assert torch.equal(*outs) != solver.random


@pytest.mark.parametrize("name", ALSO_CLIPPED)
def test_rows_do_not_look_at_each_other(name: str) -> None:
    """In any order, alone, or with a time of its own, a row gets the same step."""
    solver, denoiser, x, noise = (
        ALSO_CLIPPED[name],
        SmoothDenoiser(VPSchedule()),
        _states(6),
        _states(6).flip(0),
    )
    t, s = (
        torch.tensor([100.0, 50, 75, 20, 900, 3]).double(),
        torch.tensor([80.0, 0.01, 70, 10, 500, 2]).double(),
    )
    together = solver.step(denoiser, x, t, s, noise)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    shuffled = solver.step(denoiser, x[order], t[order], s[order], noise[order])
    torch.testing.assert_close(shuffled, together[order], rtol=1e-12, atol=1e-12)
    for b in range(6):
        alone = solver.step(denoiser, x[b : b + 1], t[b], s[b], noise[b : b + 1])
        torch.testing.assert_close(alone, together[b : b + 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ALSO_CLIPPED)
def test_the_gradient_of_a_step_agrees_with_central_differences(name: str) -> None:
    solver, denoiser = ALSO_CLIPPED[name], SmoothDenoiser(VPSchedule())
    x, noise = 0.3 * _states(3), _states(3).flip(0)

    def loss(state: Tensor) -> Tensor:
        return torch.sin(solver.step(denoiser, state, _time(100), _time(80), noise)).flatten(1).sum(1)

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    assert gradient.isfinite().all()
    assert relative_error(gradient, central_differences(loss, x)) < 1e-8


@pytest.mark.parametrize(("name", "schedule"), ON_SCHEDULES)
@pytest.mark.parametrize(("t", "s"), [(100, 80), (2, 1), (1, 0), (1000, 500), (40, 0)])
def test_a_step_is_the_literatures_formula(name: str, schedule: str, t: int, s: int) -> None:
    """Mean, Jacobian and noise coefficient, on correlated data; s = 0 is the last step."""
    solver, _, formula = SOLVERS[name]
    denoiser, x = GaussianDenoiser(SCHEDULES[schedule](), MEAN, FULL), _states(4, shape=(1, 2, 2))
    noise = _states(4, shape=(1, 2, 2)).flip(0)
    law = formula(schedule, MEAN, FULL, t, s)
    expected = x.flatten(1).numpy() @ law.matrix.T + law.offset
    for matrix in law.noises:
        expected = expected + noise.flatten(1).numpy() @ matrix.T
    out = solver.step(denoiser, x, _time(t), _time(s), noise)
    np.testing.assert_allclose(out.flatten(1).detach().numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["ddim", "ddim_half", "ddim_full", "ancestral_small", "ancestral_large", "clipped"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_last_step_returns_the_posterior_mean(name: str, schedule: str) -> None:
    denoiser = GaussianDenoiser(SCHEDULES[schedule](), 0.1 * MEAN, 0.05 * FULL)  # stays in [-1, 1]
    x = 0.2 * _states(4, shape=(1, 2, 2))
    out = ALSO_CLIPPED[name].step(denoiser, x, _time(30), _time(0), 100 * torch.ones_like(x))
    torch.testing.assert_close(out, denoiser(x, _time(30)), rtol=1e-12, atol=1e-12)


def test_full_ddim_is_ancestral_sampling_with_the_small_variance() -> None:
    denoiser, x, noise = SmoothDenoiser(LinearSchedule()), _states(3), _states(3).flip(0)
    steps = [s.step(denoiser, x, _time(100), _time(60), noise) for s in (DDIM(eta=1.0), Ancestral("small"))]
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-12, atol=1e-12)


def test_clipping_acts_on_the_estimate_of_the_clean_image_only() -> None:
    class Constant(Denoiser):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.schedule, self.image_shape, self.value = LinearSchedule(), (1, 4, 4), value

        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            return torch.full_like(x_t, self.value)

    arguments = (5 * _states(2), _time(100), _time(80), _states(2))
    clipped = Ancestral(clip_denoised=True).step(Constant(7.0), *arguments)
    assert torch.equal(clipped, Ancestral().step(Constant(1.0), *arguments))
    assert clipped.abs().max() > 1


def _run(solver: Solver, denoiser: Denoiser, x: Tensor, noise: float, start: float, stop: float, steps: int) -> Tensor:
    times = torch.linspace(start, stop, steps + 1, dtype=torch.float64)
    with torch.no_grad():
        for t, s in itertools.pairwise(times):
            x = solver.step(denoiser, x, t, s, torch.full_like(x, noise))
    return x


def _slopes(errors: list[float]) -> list[float]:
    return [float(np.log2(coarse / fine)) for coarse, fine in itertools.pairwise(errors)]


START, STOP = 400.0, 100.0
STEPS = (40, 80, 160, 320)


def test_ddim_converges_to_the_probability_flow_at_first_order() -> None:
    """On Gaussian data the flow keeps each principal coordinate's number of standard deviations."""
    denoiser, x = GaussianDenoiser(VPSchedule(), MEAN, DIAGONAL), _states(3, shape=(1, 2, 2))
    variances = [alpha_bar("vp", t) * np.diag(DIAGONAL) + 1 - alpha_bar("vp", t) for t in (START, STOP)]
    deviations = (x.flatten(1).numpy() - alpha_bar("vp", START) ** 0.5 * MEAN) / np.sqrt(variances[0])
    exact = alpha_bar("vp", STOP) ** 0.5 * MEAN + deviations * np.sqrt(variances[1])
    errors = [np.abs(_run(DDIM(), denoiser, x, 0.0, START, STOP, n).flatten(1).numpy() - exact).max() for n in STEPS]
    assert errors[-1] < 2e-3
    assert all(abs(slope - 1) < 0.1 for slope in _slopes(errors)), errors


@pytest.mark.parametrize("name", ["euler_maruyama", "ancestral_small", "ancestral_large", "ddim_full"])
def test_random_solvers_converge_to_the_posterior_at_first_order(name: str) -> None:
    """Mean and variance of x_s given x_t: the reverse process of Gaussian data is its exact posterior."""
    solver, denoiser = SOLVERS[name][0], GaussianDenoiser(VPSchedule(), MEAN, DIAGONAL)
    abar = {t: alpha_bar("vp", t) for t in (START, STOP)}
    marginal = {t: a * np.diag(DIAGONAL) + 1 - a for t, a in abar.items()}
    forward = np.sqrt(abar[START] / abar[STOP])
    gain = forward * marginal[STOP] / marginal[START]
    x = _states(1, shape=(1, 2, 2))
    exact_mean = np.sqrt(abar[STOP]) * MEAN + gain * (x.flatten().numpy() - np.sqrt(abar[START]) * MEAN)
    exact_variance = marginal[STOP] - gain**2 * marginal[START]

    mean_errors, variance_errors = [], []
    for n in STEPS:
        mean = _run(solver, denoiser, x, 0.0, START, STOP, n).flatten().numpy()
        mean_errors.append(np.abs(mean - exact_mean).max())
        times = torch.linspace(START, STOP, n + 1, dtype=torch.float64)
        variance, zero = np.zeros(4), torch.zeros(1, 1, 2, 2, dtype=torch.float64)
        for t, s in itertools.pairwise(times):  # each pixel of its own: the data are uncorrelated
            steps = [solver.step(denoiser, zero + a, t, s, zero + b) for a, b in ((0, 0), (1, 0), (0, 1))]
            at_zero, of_state, of_noise = (step.detach().flatten().numpy() for step in steps)
            variance = (of_state - at_zero) ** 2 * variance + (of_noise - at_zero) ** 2
        variance_errors.append(np.abs(variance - exact_variance).max())
    if name != "euler_maruyama":  # q(x_s | x_t, x_0) has a mean linear in x_0, so theirs is exact at any step
        assert max(mean_errors) < 1e-12
        mean_errors = variance_errors
    for errors in (mean_errors, variance_errors):
        assert errors[-1] < 1e-2
        assert all(abs(slope - 1) < 0.15 for slope in _slopes(errors)), errors


def test_the_convergence_check_notices_a_wrong_drift() -> None:
    """A score 2 % too long does not converge: the errors stop falling (the check above can fail)."""

    class Wrong(EulerMaruyama):
        def step(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Tensor) -> Tensor:
            right = super().step(denoiser, x, t, s, noise)
            assert isinstance(denoiser.schedule, VPSchedule)
            return right + 0.02 * denoiser.schedule.beta(t) * (t - s) / 1000 * denoiser.score(x, t)

    denoiser, x = GaussianDenoiser(VPSchedule(), MEAN, DIAGONAL), _states(1, shape=(1, 2, 2))
    fine = _run(EulerMaruyama(), denoiser, x, 0.0, START, STOP, 2000)
    errors = [float((_run(Wrong(), denoiser, x, 0.0, START, STOP, n) - fine).abs().max()) for n in STEPS]
    assert any(abs(slope - 1) > 0.15 for slope in _slopes(errors))


def test_euler_maruyama_refuses_a_discrete_schedule() -> None:
    with pytest.raises(ValueError, match="LinearSchedule: choose the Ancestral or DDIM"):
        EulerMaruyama().check(GaussianDenoiser(LinearSchedule()))
    EulerMaruyama().check(GaussianDenoiser(VPSchedule()))


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_ddim_refuses_eta_out_of_range(eta: float) -> None:
    with pytest.raises(ValueError, match=r"eta is .* lies in \[0, 1\]"):
        DDIM(eta)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noise_and_score_are_those_of_the_gaussian(schedule: str) -> None:
    """Tweedie's formula against the score of N(a mean, a^2 covariance + sigma^2) itself."""
    denoiser, x = GaussianDenoiser(SCHEDULES[schedule]()), _states(5, shape=(1, 2, 2))
    abar = alpha_bar(schedule, 150)
    marginal = abar * FULL + (1 - abar) * np.eye(4)
    expected = -(x.flatten(1).numpy() - np.sqrt(abar) * MEAN) @ np.linalg.inv(marginal)
    score = denoiser.score(x, _time(150)).detach()
    np.testing.assert_allclose(score.flatten(1), expected, rtol=1e-9)
    noise = denoiser.noise(x, _time(150)).detach()
    torch.testing.assert_close(noise, -score * (1 - abar) ** 0.5)
    rows = denoiser.score(x, torch.full((5,), 150.0)).detach()
    torch.testing.assert_close(rows, score)
