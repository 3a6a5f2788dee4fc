"""The deterministic solvers on every continuous schedule, against the exact flow of Gaussian data.

At the image's own scale (x_t / alpha, noise ratio r) the flow keeps each principal coordinate's number of standard
deviations, whose unit is sqrt(variance + r^2): Karras et al. 2022, equation 1.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lustral.diffusion import (
    DDIM,
    Ancestral,
    EDMSchedule,
    EulerMaruyama,
    FlowEuler,
    Heun,
    LinearSchedule,
    NoiseSchedule,
    Solver,
    VESchedule,
    VPSchedule,
)
from lustral.diffusion.solvers import langevin
from tests.closed_form import DIAGONAL, MEAN, GaussianDenoiser
from tests.contracts import SmoothDenoiser, generator

SCHEDULES: dict[str, NoiseSchedule] = {"vp": VPSchedule(), "ve": VESchedule(), "edm": EDMSchedule()}
STEPS = (20, 40, 80, 160)
FLOWS: dict[str, tuple[Solver, tuple[str, ...], int]] = {
    "flow_euler": (FlowEuler(), ("vp",), 1),
    "ddim": (DDIM(), ("vp", "ve", "edm"), 1),
    "heun": (Heun(), ("vp", "ve", "edm"), 2),
}


def _random(batch: int = 3) -> Tensor:
    return torch.randn(batch, 1, 2, 2, generator=generator(1), dtype=torch.float64)


def _run(solver: Solver, denoiser: GaussianDenoiser, x: Tensor, times: Tensor, noises: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        for i, (t, s) in enumerate(itertools.pairwise(times)):
            x = solver.step(denoiser, x, t, s, torch.zeros_like(x) if noises is None else noises[i])
    return x


def _exact(schedule: NoiseSchedule, x: Tensor, start: Tensor, stop: Tensor) -> np.ndarray:
    ratios = [float(schedule.noise_ratio(t)) for t in (start, stop)]
    units = [np.sqrt(np.diag(DIAGONAL) + r**2) for r in ratios]
    own = x.flatten(1).numpy() / float(schedule.alpha(start))
    return float(schedule.alpha(stop)) * (MEAN + (own - MEAN) / units[0] * units[1])


@pytest.mark.parametrize(("name", "schedule"), [(n, s) for n, (_, on, _) in FLOWS.items() for s in on])
def test_flows_converge_at_their_order(name: str, schedule: str) -> None:
    solver, _, order = FLOWS[name]
    on = SCHEDULES[schedule]
    start, stop = (on.time(torch.tensor(r, dtype=torch.float64)) for r in (3.0, 0.3))
    denoiser = GaussianDenoiser(on, MEAN, DIAGONAL)
    x = float(on.alpha(start)) * (_random() * 3 + torch.from_numpy(MEAN).view(1, 1, 2, 2))
    exact = _exact(on, x, start, stop)
    errors = []
    for n in STEPS:
        times = torch.linspace(float(start), float(stop), n + 1, dtype=torch.float64)
        errors.append(np.abs(_run(solver, denoiser, x, times).flatten(1).numpy() - exact).max())
    slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert errors[-1] < 0.02
    assert all(abs(slope - order) < 0.2 for slope in slopes), (errors, slopes)


def test_eighteen_steps_of_algorithm_2_are_karras() -> None:
    """Table 1 and algorithm 2, written down again in numpy for a Gaussian of one variance a pixel."""
    variances = np.diag(DIAGONAL)
    n, rho, low, high = 18, 7.0, 0.002, 80.0
    sigmas = [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)] + [0]
    state = 80.0 * _random().flatten(1).numpy()
    expected = state
    for now, then in itertools.pairwise(sigmas):

        def slope(x: np.ndarray, sigma: float) -> np.ndarray:
            return (x - (MEAN + variances / (variances + sigma**2) * (x - MEAN))) / sigma

        d = slope(expected, now)
        ahead = expected + (then - now) * d
        expected = ahead if then == 0 else expected + (then - now) * 0.5 * (d + slope(ahead, then))

    schedule = EDMSchedule()
    times = schedule.grid(1000, n)
    np.testing.assert_allclose(schedule.sigma(times).numpy(), sigmas, rtol=1e-10)
    found = _run(Heun(), GaussianDenoiser(schedule, MEAN, DIAGONAL), torch.from_numpy(state).view(-1, 1, 2, 2), times)
    np.testing.assert_allclose(found.flatten(1).numpy(), expected, rtol=1e-9)


def test_the_published_noise_levels() -> None:
    """CMAP's list of 18 levels."""
    levels = EDMSchedule().sigma(EDMSchedule().grid(1000, 18))[:-1].flip(0)
    published = [
        *(0.002, 0.0075, 0.0229, 0.0599, 0.1395, 0.2964, 0.5853, 1.088, 1.923),
        *(3.257, 5.315, 8.401, 12.91, 19.35, 28.37, 40.79, 57.59, 80.0),
    ]
    np.testing.assert_allclose(levels.numpy(), published, rtol=4e-3)


@pytest.mark.parametrize("solver", [Heun(churn=0.4), Ancestral("small"), DDIM(1.0)], ids=["churn", "ancestral", "ddim"])
def test_random_solvers_end_in_the_data_on_an_exploding_schedule(solver: Solver) -> None:
    """20,000 samples from pure noise: means and variances within five standard errors."""
    schedule, count = EDMSchedule(), 20_000
    times = schedule.grid(1000, 200 if not isinstance(solver, Heun) else 100)
    source = generator(2)
    x = 80.0 * torch.randn(count, 1, 2, 2, generator=source, dtype=torch.float64)
    noises = torch.randn(len(times) - 1, count, 1, 2, 2, generator=source, dtype=torch.float64)
    found = _run(solver, GaussianDenoiser(schedule, MEAN, DIAGONAL), x, times, noises).flatten(1).numpy()
    variances = np.diag(DIAGONAL)
    assert (np.abs(found.mean(0) - MEAN) < 5 * np.sqrt(variances / count) + 2e-3).all()
    # The solver's own error at this many steps is a few hundredths of the variance.
    np.testing.assert_allclose(found.var(0), variances, rtol=5 * math.sqrt(2 / count) + 0.03)


def test_churn_without_noise_would_shrink_the_variance() -> None:
    """The check above can fail: forgetting the new noise loses variance."""
    schedule = EDMSchedule()
    x = 80.0 * torch.randn(20_000, 1, 2, 2, generator=generator(2), dtype=torch.float64)
    noises = torch.randn(100, *x.shape, generator=generator(3), dtype=torch.float64)
    wrong = Heun(churn=0.4, churn_noise=0.0)
    found = _run(wrong, GaussianDenoiser(schedule, MEAN, DIAGONAL), x, schedule.grid(1000, 100), noises).flatten(1)
    assert (found.var(0).numpy() < 0.9 * np.diag(DIAGONAL)).any()


def test_churn_never_leaves_the_schedule() -> None:
    """At the top there is no more noise to rise to: the step is the one without churn."""
    schedule, top = VPSchedule(), torch.tensor(1000.0, dtype=torch.float64)
    x, denoiser = _random(), GaussianDenoiser(schedule, MEAN, DIAGONAL)
    steps = [h.step(denoiser, x, top, top - 50, torch.ones_like(x)) for h in (Heun(), Heun(churn=0.3))]
    torch.testing.assert_close(*steps)


def test_heun_takes_rows_that_arrive_at_zero_beside_others() -> None:
    schedule, x = EDMSchedule(), _random(3)
    denoiser = GaussianDenoiser(schedule, MEAN, DIAGONAL)
    t, s = torch.tensor([500.0, 1.0, 300.0]).double(), torch.tensor([400.0, 0.0, 0.0]).double()
    together = Heun().step(denoiser, x, t, s, x)
    alone = [Heun().step(denoiser, x[i : i + 1], t[i], s[i], x[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("wrong", [{"churn": 0.5}, {"churn": -0.1}, {"churn_min": 2.0, "churn_max": 1.0}])
def test_churn_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="churn"):
        Heun(**wrong)


def test_churn_refuses_a_table_of_levels() -> None:
    with pytest.raises(ValueError, match="set churn to 0"):
        Heun(churn=0.1).check(SmoothDenoiser(LinearSchedule()))
    Heun().check(SmoothDenoiser(LinearSchedule()))


@pytest.mark.parametrize("solver", [EulerMaruyama(), FlowEuler()])
def test_sde_solvers_refuse_exploding_schedules(solver: Solver) -> None:
    with pytest.raises(ValueError, match="EDMSchedule"):
        solver.check(SmoothDenoiser(EDMSchedule()))


def test_langevin_settles_around_its_start() -> None:
    """With temperature 1 its law is p(x) exp(-|x - start|^2 / (2 tether)): Gaussian data give a Gaussian, of which the
    Euler chain's own stationary mean is exact and the variance v / (1 - h rate / (4 v))."""
    variance, tether, rate, h = 0.3, 0.2, 1.0, 0.05
    start = torch.full((4000, 1, 2, 2), 0.7, dtype=torch.float64)
    exact_variance = 1 / (1 / variance + 1 / tether)
    exact_mean = exact_variance * (0.1 / variance + 0.7 / tether)
    x, source, means, squares = start.clone(), generator(4), [], []
    for i in range(400):
        score = -(x - 0.1) / variance
        noise = torch.randn(x.shape, generator=source, dtype=torch.float64)
        x = langevin(x, score, start, h, rate, 1.0, noise, tether)
        if i >= 200:
            means.append(x.mean())
            squares.append(x.var())
    assert float(torch.stack(means).mean()) == pytest.approx(exact_mean, abs=3e-3)
    chain = exact_variance / (1 - h * rate / (4 * exact_variance))
    assert float(torch.stack(squares).mean()) == pytest.approx(chain, rel=0.01)
