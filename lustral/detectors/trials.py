"""Trials of a two-sample test: how often a kernel tells groups with adversarial images from clean ones."""

from typing import Literal, get_args

import torch
from torch import Tensor

from lustral.detectors.mmd import Estimator
from lustral.detectors.two_sample import Tested, permutation_test, wild_bootstrap_test
from lustral.noise import NoiseStream

TwoSampleTest = Literal["permutation", "wild_bootstrap"]


def run_trials(
    pool: Tensor,
    n: int,
    adversarial: int,
    trials: int,
    seed: int,
    test: TwoSampleTest = "permutation",
    estimator: Estimator = "unbiased",
    replicates: int = 200,
) -> Tested:
    """Tests of ``n`` clean images against groups of n, of which ``adversarial`` are adversarial and the others clean.

    Each trial draws 2 n different images of the pool, so no adversarial image stands against the clean one that it was
    made of, and under ``adversarial = 0`` the two samples are a random split of one sample.

    Args:
        pool: (2N, 2N) Gram matrix of N clean images and, in the same order, of their adversarial versions.
        n: images in each sample, at most N / 2.
        adversarial: adversarial images in the second sample, 0 to n.
        trials: T, the number of tests.
        seed: of images, permutations and multipliers.
        test: "permutation" or "wild_bootstrap".
        estimator: "unbiased" or "biased".
        replicates: null statistics of each test.

    Raises:
        ValueError: if a number is out of its range, or the test is unknown.
    """
    size = len(pool) // 2
    if not 2 <= n <= size // 2 or not 0 <= adversarial <= n:
        raise ValueError(
            f"Groups of {n} images with {adversarial} adversarial ones out of {size}: a trial takes 2 n different "
            f"images and at most n adversarial ones, so n may be 2 to {size // 2}."
        )
    if test not in get_args(TwoSampleTest):
        raise ValueError(f"The test is {test!r}; it may be {' or '.join(get_args(TwoSampleTest))}.")
    noise = NoiseStream(seed, torch.arange(trials, device=pool.device)).fork("trials", f"{n} {adversarial}")
    drawn = noise.fork("images").uniform((size,), dtype=torch.float64).argsort(-1)[:, : 2 * n]
    drawn[:, n : n + adversarial] += size
    tested = permutation_test if test == "permutation" else wild_bootstrap_test
    statistics, p_values = [], []
    # In blocks, since a trial's Gram matrix is gathered out of the pool's.
    for rows in torch.arange(trials, device=pool.device).split(max(1, 2**23 // (4 * n * n))):
        some = drawn[rows]
        k = pool[some[:, :, None], some[:, None, :]]
        result = tested(k, n, noise.select(rows), replicates, estimator)
        statistics.append(result.statistic)
        p_values.append(result.p_value)
    return Tested(torch.cat(statistics), torch.cat(p_values))
