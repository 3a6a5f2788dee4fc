"""The schedules of consistency training, against the numbers of the papers and of their authors' code."""

import math

import pytest
import torch
from scipy.stats import norm

from lustral.diffusion import EDMSchedule, Progress
from lustral.diffusion.consistency_schedules import (
    adaptive_decay,
    adaptive_levels,
    doubling_levels,
    easy_earlier,
    karras_sigmas,
    lognormal_masses,
    stage_of,
)

SHARES = (0, 1, 10, 25, 50, 75, 100)  # per cent of 800,000 steps


def test_the_levels_and_the_decay_of_ct_grow() -> None:
    numbers = [adaptive_levels(Progress(8000 * share, 800_000)) for share in SHARES]
    assert numbers == [2, 16, 48, 76, 107, 131, 151]
    decays = [adaptive_decay(number) for number in numbers]
    assert decays == pytest.approx([0.81, 0.986, 0.9955, 0.9972, 0.9980, 0.9984, 0.9986], abs=6e-5 + 4e-4)
    assert decays[0] == pytest.approx(0.9**2)
    assert adaptive_levels(Progress(200_000, 800_000), 2, 200) == 101  # of CMAP's generator
    assert adaptive_levels(Progress(800_000, 800_000), 2, 200) == 201


def test_the_levels_of_ict_double() -> None:
    every = 400_000 // 8
    for stage, number in enumerate((11, 21, 41, 81, 161, 321, 641, 1281)):
        assert doubling_levels(Progress(stage * every, 400_000)) == number
        assert doubling_levels(Progress((stage + 1) * every - 1, 400_000)) == number
    assert doubling_levels(Progress(400_000, 400_000)) == 1281
    assert doubling_levels(Progress(10**6, 10**6), 10, 160) == 161
    assert [doubling_levels(Progress(k, 3)) for k in range(4)] == [11, 21, 41, 81]  # shorter than the growth


def test_the_intervals_of_ict_are_the_masses_of_a_normal_law() -> None:
    sigmas = karras_sigmas(11)
    masses = lognormal_masses(sigmas)
    above = norm.cdf(sigmas.log().numpy(), -1.1, 2.0)
    expected = (above[1:] - above[:-1]) / (above[-1] - above[0])
    torch.testing.assert_close(masses, torch.from_numpy(expected), rtol=1e-9, atol=1e-12)
    assert float(masses.sum()) == pytest.approx(1.0)


def test_the_levels_of_karras() -> None:
    found = karras_sigmas(18)
    expected = [
        *(0.002, 0.0075, 0.0229, 0.0599, 0.1395, 0.2964, 0.5853, 1.088, 1.923, 3.257, 5.315, 8.401, 12.91, 19.35),
        *(28.37, 40.79, 57.59, 80.0),
    ]
    assert found.tolist() == pytest.approx(expected, rel=6e-3)
    torch.testing.assert_close(found.flip(0), EDMSchedule().sigma(EDMSchedule().grid(1000, 18))[:-1])
    with pytest.raises(ValueError, match="num_levels is 1"):
        karras_sigmas(1)


def test_the_earlier_level_of_ect_comes_closer_in_stages() -> None:
    t = torch.tensor([0.5, 1.0, 3.0, 10.0, 60.0], dtype=torch.float64)
    assert (easy_earlier(t, 0, 2) / t).tolist() == pytest.approx([0, 0, 0.31, 0.5, 0.5], abs=6e-3)
    one = torch.ones(1, dtype=torch.float64)
    stages = [float(easy_earlier(one, stage, 2)) for stage in range(8)]
    assert stages == pytest.approx([0, 0.21, 0.61, 0.80, 0.90, 0.95, 0.975, 0.988], abs=5e-3)
    close = easy_earlier(t, 0, 256) / t
    assert 0.978 < float(close.min()) < float(close.max()) < 0.9962


def test_stages_have_equal_lengths() -> None:
    assert [stage_of(Progress(k, 8), 4) for k in range(9)] == [0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert math.prod(stage_of(Progress(k, 10), 1) + 1 for k in range(11)) == 1
