"""Noise schedules: the published values, what makes two schedules differ, and the grids."""

import math

import numpy as np
import pytest
import torch

from lustral.diffusion import CosineSchedule, EDMSchedule, LinearSchedule, NoiseSchedule, VESchedule, VPSchedule
from lustral.diffusion.schedules import make_schedule
from tests.closed_form import SCHEDULES, alpha_bar
from tests.contracts import images, stream

# Golden values: the share of variance left after k noising steps.
ALPHA_BAR = {
    1: 0.999900, 20: 0.994231, 30: 0.988400, 36: 0.983976, 45: 0.976062, 50: 0.971016,
    75: 0.939121, 100: 0.897018, 125: 0.846180, 150: 0.788321, 200: 0.659039, 300: 0.396420,
}  # fmt: skip
# The same steps on the continuous schedule.
CONTINUOUS = {36: 0.983640, 100: 0.896282, 150: 0.787513, 200: 0.658362}


@pytest.mark.parametrize(("k", "value"), ALPHA_BAR.items())
def test_discrete_golden_values(k: int, value: float) -> None:
    assert float(LinearSchedule().alpha_bar(torch.tensor(k))) == pytest.approx(value, abs=5e-7)


@pytest.mark.parametrize(("t", "value"), CONTINUOUS.items())
def test_continuous_golden_values(t: int, value: float) -> None:
    assert float(VPSchedule().alpha_bar(torch.tensor(t))) == pytest.approx(value, abs=5e-7)


@pytest.mark.parametrize(("t", "value"), [(1, 0.01049), (20, 0.07721), (50, 0.17156), (100, 0.3221)])
def test_continuous_golden_sigmas(t: int, value: float) -> None:
    assert float(VPSchedule().sigma(torch.tensor(float(t)))) == pytest.approx(value, abs=5.1e-5 if t == 100 else 5e-6)


def test_the_continuous_rate_is_the_derivative_of_alpha_bar() -> None:
    schedule, t = VPSchedule(), torch.tensor([0.5, 10.0, 333.3, 999.0], dtype=torch.float64)
    h = 1e-4
    rate = -(schedule.alpha_bar(t + h).log() - schedule.alpha_bar(t - h).log()) / (2 * h / 1000)
    torch.testing.assert_close(schedule.beta(t), rate, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_preserves_variance_in_float64(name: str) -> None:
    schedule, t = SCHEDULES[name](), torch.arange(1001)
    assert schedule.alpha(t).dtype == schedule.sigma(t).dtype == torch.float64
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones(1001).double())
    assert (schedule.alpha_bar(t).diff() < 0).all()
    assert schedule.sigma(torch.tensor(0)) == 0
    ours = [alpha_bar(name, k) for k in (1, 99, 500, 1000)]
    torch.testing.assert_close(schedule.alpha_bar(torch.tensor([1, 99, 500, 1000])), torch.tensor(ours).double())


@pytest.mark.parametrize("name", SCHEDULES)
def test_perturb_takes_one_time_or_one_a_row(name: str) -> None:
    schedule, x = SCHEDULES[name](), images(3)
    noise = stream(3).normal(x.shape[1:])
    rows = torch.tensor([10, 200, 700])
    together = schedule.perturb(x, rows, noise)
    assert together.dtype == torch.float32
    for b in range(3):
        expected = alpha_bar(name, int(rows[b])) ** 0.5 * x[b] + (1 - alpha_bar(name, int(rows[b]))) ** 0.5 * noise[b]
        torch.testing.assert_close(together[b], expected)
        alone = schedule.perturb(x[b : b + 1], rows[b], noise[b : b + 1])
        torch.testing.assert_close(alone[0], together[b])


@pytest.mark.parametrize(
    ("t_star", "num_steps", "expected"),
    [
        (100, 20, list(range(100, -1, -5))),
        (200, 5, [200, 160, 120, 80, 40, 0]),
        (30, 1, [30, 0]),
        (7, 7, list(range(7, -1, -1))),
        (10, 3, [10, 7, 4, 0]),  # 10 k / 3 rounded up
    ],
)
def test_discrete_grids(t_star: int, num_steps: int, expected: list[int]) -> None:
    grid = LinearSchedule().grid(t_star, num_steps)
    assert grid.dtype == torch.float64
    assert grid.tolist() == expected


@pytest.mark.parametrize(("t_star", "num_steps"), [(100, 100), (100, 20), (75, 75), (150, 7)])
def test_continuous_grids_count_whole_steps_and_stop_short_of_zero(t_star: int, num_steps: int) -> None:
    grid = VPSchedule().grid(t_star, num_steps)
    assert grid.dtype == torch.float64
    assert grid[:-1].tolist() == [t_star * k / num_steps for k in range(num_steps, 0, -1)]
    assert grid[-1] == 1e-2


@pytest.mark.parametrize("schedule", [LinearSchedule(), VPSchedule()], ids=["discrete", "vp"])
@pytest.mark.parametrize(
    ("t_star", "num_steps", "named"),
    [(0, 1, "t_star"), (1001, 10, "t_star"), (10, 0, "num_steps"), (10, 11, "num_steps")],
)
def test_impossible_grids_are_refused(schedule: NoiseSchedule, t_star: int, num_steps: int, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named} is"):
        schedule.grid(t_star, num_steps)


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.02), (0.02, 0.01), (0.1, 1.0)])
def test_impossible_discrete_variances_are_refused(start: float, end: float) -> None:
    with pytest.raises(ValueError, match="beta_start"):
        LinearSchedule(start, end)


@pytest.mark.parametrize(("low", "high"), [(0.0, 20.0), (20.0, 0.1)])
def test_impossible_rates_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="beta_min"):
        VPSchedule(low, high)


def test_the_cosine_schedule_is_the_published_one() -> None:
    """Nichol and Dhariwal 2021, equation 17; index 470 of 4000 has sigma / alpha 0.198, 1158 0.500, 1984 1.001."""
    schedule = CosineSchedule()
    k = torch.tensor([1.0, 400.0, 2000.0, 3500.0], dtype=torch.float64)
    f = [math.cos((float(i) / 4000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in (0.0, *k)]
    torch.testing.assert_close(schedule.alpha_bar(k / 4), torch.tensor(f[1:]).double() / f[0])
    for index, ratio in ((470, 0.198), (1158, 0.500), (1984, 1.001), (2809, 2.000)):
        t = torch.tensor((index + 1) / 4, dtype=torch.float64)
        assert float(schedule.noise_ratio(t)) == pytest.approx(ratio, abs=6e-4)
        assert int(schedule.level(t)) == index + 1


def test_a_cosine_grid_visits_levels_of_4000() -> None:
    assert CosineSchedule().grid(1000, 4).tolist() == [1000, 750, 500, 250, 0]
    assert CosineSchedule().grid(117.5, 470).tolist() == [k / 4 for k in range(470, -1, -1)]


CONTINUOUS_SCHEDULES = {"vp": VPSchedule(), "ve": VESchedule(), "edm": EDMSchedule()}


@pytest.mark.parametrize("name", CONTINUOUS_SCHEDULES)
def test_times_are_found_from_noise_ratios(name: str) -> None:
    schedule = CONTINUOUS_SCHEDULES[name]
    t = torch.tensor([0.02, 0.5, 1.0, 1.7, 100.0, 333.3, 999.0, 1000.0], dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.noise_ratio(t)), t, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule()], ids=["linear", "cosine"])
def test_the_nearest_level_is_found(schedule: LinearSchedule | CosineSchedule) -> None:
    step = 1000 / schedule.levels
    t = torch.arange(1, schedule.levels + 1).double() * step
    ratios = schedule.noise_ratio(t)
    assert torch.equal(schedule.time(ratios), t)
    between = ratios[:-1] + 0.4 * ratios.diff()
    assert torch.equal(schedule.time(between), t[:-1])
    between = ratios[:-1] + 0.6 * ratios.diff()
    assert torch.equal(schedule.time(between), t[1:])
    assert schedule.time(torch.tensor(1e9)) == 1000


@pytest.mark.parametrize("name", ["ve", "edm"])
def test_an_exploding_schedule_keeps_the_image(name: str) -> None:
    schedule = CONTINUOUS_SCHEDULES[name]
    low, high = (0.02, 100.0) if name == "ve" else (0.002, 80.0)
    t = torch.tensor([0.0, 1.0, 1000.0], dtype=torch.float64)
    assert schedule.alpha(t).tolist() == [1, 1, 1]
    np.testing.assert_allclose(schedule.sigma(t).numpy(), [0, low, high])
    if name == "ve":  # geometric: equal steps in t, equal factors
        factors = schedule.sigma(torch.linspace(1, 1000, 11, dtype=torch.float64)).log().diff()
        torch.testing.assert_close(factors, factors[0].expand(10))


def test_unknown_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="schedule is 'sigmoid'; it may be vp, linear, cosine, ve, edm"):
        make_schedule("sigmoid")
    with pytest.raises(ValueError, match="sigma_min"):
        EDMSchedule(1.0, 0.5)
    with pytest.raises(ValueError, match="num_levels"):
        CosineSchedule(0)
