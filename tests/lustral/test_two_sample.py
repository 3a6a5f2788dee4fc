"""Two-sample tests: their level at every size, their power where it is known, and p-values by hand."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from lustral.detectors import GaussianKernel, permutation_test, run_trials, two_sample, wild_bootstrap_test
from lustral.detectors.mmd import Estimator, biased, unbiased
from lustral.detectors.trials import TwoSampleTest
from lustral.noise import NoiseStream

TRIALS, REPLICATES = 200, 59


def pool(size: int, shift: float, bandwidth: float = 8.0, seed: int = 0) -> Tensor:
    """The Gram matrix of normal images, and of the same ones shifted."""
    x = NoiseStream(seed, torch.arange(size)).normal((1, 2, 2), dtype=torch.float64)
    kernel = GaussianKernel(bandwidth)
    with torch.no_grad():
        both = kernel.embed(torch.cat((x, x + shift)))
        return kernel.gram(both, both)


@pytest.fixture(scope="module")
def clean() -> Tensor:
    return pool(220, 0.0)


@pytest.mark.parametrize("test", ["permutation", "wild_bootstrap"])
@pytest.mark.parametrize("n", [10, 25, 50, 100])
def test_clean_against_clean_is_rejected_as_often_as_promised(clean: Tensor, n: int, test: TwoSampleTest) -> None:
    trials = TRIALS if n < 50 else TRIALS // 2
    p_value = run_trials(clean, n, 0, trials, 3, test, replicates=REPLICATES).p_value
    low, high = stats.binom.interval(0.999, trials, 0.05)
    assert low <= int((p_value <= 0.05).sum()) <= high
    assert 0.4 < float(p_value.mean()) < 0.6


def test_the_bootstrap_of_the_reference_does_not_hold_its_level_for_small_groups() -> None:
    """Not with a kernel that is narrow for its images. With signs the test is exact, so they are the default."""
    noise = NoiseStream(0, torch.arange(400))
    drawn = noise.fork("images").uniform((220,), dtype=torch.float64).argsort(-1)[:, :20]
    k = pool(220, 0.0, bandwidth=1.0)[drawn[:, :, None], drawn[:, None, :]]
    low, high = stats.binom.interval(0.998, 400, 0.05)
    p_value = wild_bootstrap_test(k, 10, noise, REPLICATES, "biased", "reference").p_value
    assert int((p_value <= 0.05).sum()) < low
    p_value = wild_bootstrap_test(k, 10, noise, REPLICATES, "biased").p_value
    assert low <= int((p_value <= 0.05).sum()) <= high


@pytest.mark.parametrize("test", ["permutation", "wild_bootstrap"])
def test_the_power_on_a_shift_is_that_of_the_means(test: TwoSampleTest) -> None:
    """With a very wide kernel the squared MMD is that of the means, and n |difference|^2 / 2 has a noncentral
    chi-square distribution."""
    n, shift = 40, 0.25
    # Fresh images in every trial: images that are drawn from one pool would share its chance.
    x = NoiseStream(0, torch.arange(300 * 2 * n)).normal((1, 2, 2), dtype=torch.float64).view(300, 2 * n, 4)
    x[:, n:] += shift
    kernel = GaussianKernel(1e5)
    with torch.no_grad():
        k = kernel.gram({"vectors": x}, {"vectors": x})
    noise = NoiseStream(1, torch.arange(300))
    run = permutation_test if test == "permutation" else wild_bootstrap_test
    found = float((run(k, n, noise, REPLICATES).p_value <= 0.05).double().mean())
    expected = stats.ncx2.sf(stats.chi2.ppf(0.95, 4), 4, n / 2 * 4 * shift**2)
    assert 0.3 < expected < 0.7
    assert abs(found - expected) < 4 * (expected * (1 - expected) / 300) ** 0.5


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_relabelled_statistics_are_those_of_the_relabelled_samples(estimator: Estimator) -> None:
    k = pool(8, 0.5)[:8, :8][None]
    n, function = 3, unbiased if estimator == "unbiased" else biased
    labellings = list(itertools.combinations(range(8), n))
    chosen = torch.zeros(1, len(labellings), 8, dtype=torch.float64)
    for row, first in enumerate(labellings):
        chosen[0, row, list(first)] = 1.0
    found = two_sample._relabelled(k, chosen, n, 5, estimator)[0]
    for row, first in enumerate(labellings):
        a = torch.tensor(first)
        b = torch.tensor([i for i in range(8) if i not in first])
        value = function(k[0][a][:, a], k[0][b][:, b], k[0][a][:, b])
        assert abs(float(found[row] - value)) < 1e-12


def test_p_values_depend_on_their_trial_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    k = torch.stack([pool(12, 0.3, seed=seed)[:12, 6:18] for seed in range(5)])
    k = torch.stack([(each + each.mT) / 2 for each in k])
    noise = NoiseStream(0, torch.arange(5))
    for test in (permutation_test, wild_bootstrap_test):
        together = test(k, 6, noise, 50)
        rows = torch.tensor([3, 1])
        assert torch.equal(test(k[rows], 6, noise.select(rows), 50).p_value, together.p_value[rows])
        monkeypatch.setattr(two_sample, "_BLOCK", 1)
        assert torch.equal(test(k, 6, noise, 50).p_value, together.p_value)
        monkeypatch.undo()
    p = permutation_test(k, 6, noise, 50).p_value
    assert ((p * 51 - 1).round() / 51 + 1 / 51 - p).abs().max() < 1e-12, "a multiple of 1 / 51"


def test_the_process_of_the_reference_is_its_recursion() -> None:
    e = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, w = np.exp(-1 / 0.7), [e[:, 0]]
    for t in range(1, 6):
        w.append(a * w[-1] + np.sqrt(1 - a**2) * e[:, t])
    w = torch.stack(w, -1)
    assert torch.allclose(two_sample._autoregressive(e, 0.7), w - w.mean(-1, keepdim=True), atol=1e-12)


def test_impossible_trials_are_refused(clean: Tensor) -> None:
    noise = NoiseStream(0, torch.arange(1))
    with pytest.raises(ValueError, match=r"3 and 5 images: .* take the permutation test"):
        wild_bootstrap_test(clean[None, :8, :8], 3, noise)
    with pytest.raises(ValueError, match="needs at least two"):
        permutation_test(clean[None, :8, :8], 7, noise)
    with pytest.raises(ValueError, match=r"2 n different .* 2 to 110"):
        run_trials(clean, 111, 0, 5, 0)
    with pytest.raises(ValueError, match="noise stream of 1 rows"):
        permutation_test(clean[None, :8, :8].expand(2, -1, -1), 4, noise)


@pytest.mark.parametrize("test", [permutation_test, wild_bootstrap_test])
def test_a_broken_kernel_rejects_nothing(test: Any) -> None:
    k = torch.full((2, 8, 8), torch.nan, dtype=torch.float64)
    assert test(k, 4, NoiseStream(0, torch.arange(2)), 19).p_value.tolist() == [1.0, 1.0]
