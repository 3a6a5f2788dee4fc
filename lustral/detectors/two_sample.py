"""Two-sample tests: p-values of a squared MMD by permutation and by wild bootstrap, many trials at once.

A trial is a pooled sample of n + m images with its Gram matrix. Under permutation every null statistic is a quadratic
form of that matrix, so all permutations of all trials are two matrix products. Random numbers are keyed by the trial.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lustral.detectors.mmd import Estimator, pair_matrix
from lustral.noise import NoiseStream

Multipliers = Literal["rademacher", "reference"]

_BLOCK = 2**22
"""Random numbers drawn at once: trials are taken in blocks, which changes no random number."""


class Tested(NamedTuple):
    """Of T trials.

    Attributes:
        statistic: (T,) float64, the observed squared MMD.
        p_value: (T,) float64 in (0, 1]: (1 + null statistics that are at least as large) / (1 + null statistics).
    """

    statistic: Tensor
    p_value: Tensor


def permutation_test(
    k: Tensor, n: int, noise: NoiseStream, permutations: int = 200, estimator: Estimator = "unbiased"
) -> Tested:
    """Whether the first ``n`` of each trial's images and the others are of one distribution.

    The null statistics are those of random relabellings, so that with exchangeable images P(p <= a) <= a at every n, m
    and number of permutations (Phipson and Smyth 2010).

    Args:
        k: (T, N, N) Gram matrices of the pooled samples.
        n: size of the first sample; the second has N - n.
        noise: a stream of T rows, which keys the permutations.
        permutations: null statistics.
        estimator: "unbiased" or "biased".

    Raises:
        ValueError: if a sample has fewer than two images, or the numbers of trials differ.
    """
    size = k.shape[-1]
    if not 2 <= n <= size - 2:
        raise ValueError(f"A test of {n} against {size - n} images: each sample needs at least two.")

    def block(k: Tensor, noise: NoiseStream) -> Tested:
        order = noise.fork("permutation").uniform((permutations, size), dtype=torch.float64).argsort(-1)
        chosen = torch.zeros(len(k), permutations + 1, size, dtype=k.dtype, device=k.device)
        chosen[:, 1:].scatter_(-1, order[..., :n], 1.0)
        chosen[:, 0, :n] = 1.0  # the observed labelling, computed as all others are
        statistics = _relabelled(k, chosen, n, size - n, estimator)
        return _result(statistics[:, 0], statistics[:, 1:])

    return _in_blocks(block, k, noise, permutations * size)


def wild_bootstrap_test(
    k: Tensor,
    n: int,
    noise: NoiseStream,
    replicates: int = 200,
    estimator: Estimator = "unbiased",
    multipliers: Multipliers = "rademacher",
    lag: float = 0.2,
) -> Tested:
    """The test of `permutation_test` for samples of one size, by random multipliers of the pairs (x_i, y_i).

    The null statistics are the mean over i and j of H_ij W_i W_j (over i != j for "unbiased"), H as in
    `lustral.detectors.mmd.pair_matrix`.

    Args:
        k: (T, 2n, 2n) Gram matrices of the pooled samples.
        n: size of each sample.
        noise: a stream of T rows.
        replicates: null statistics.
        estimator: "unbiased" (the U-statistic `paired`) or "biased".
        multipliers: "rademacher": independent signs; each exchanges x_i and y_i, so the level holds at every n.
            "reference": the centred Gaussian process W_t = a W_{t-1} + sqrt(1 - a^2) e_t, a = exp(-1 / lag), of
            Chwialkowski et al. (NIPS 2014) as SAMMD uses it, which holds the level for large n only.
        lag: of the reference's process.

    Raises:
        ValueError: if the samples differ in size or have fewer than two images, or an option is unknown.
    """
    if k.shape[-1] != 2 * n or n < 2:
        raise ValueError(
            f"A wild bootstrap of {n} and {k.shape[-1] - n} images: it takes at least two of each, and as many of one "
            "as of the other; take the permutation test for samples of different sizes."
        )
    if multipliers not in get_args(Multipliers) or not lag > 0:
        raise ValueError(
            f"multipliers = {multipliers!r}, lag = {lag}: they may be rademacher or reference, and positive."
        )

    def block(k: Tensor, noise: NoiseStream) -> Tested:
        h = pair_matrix(k[:, :n, :n], k[:, n:, n:], k[:, :n, n:])
        if estimator == "unbiased":
            h = h - torch.diag_embed(h.diagonal(dim1=-2, dim2=-1))
        count = n * (n - 1) if estimator == "unbiased" else n * n
        stream = noise.fork("wild bootstrap")
        if multipliers == "rademacher":
            w = 2.0 * (stream.uniform((replicates, n), dtype=torch.float64) > 0.5).to(k.dtype) - 1.0
        else:
            w = _autoregressive(stream.normal((replicates, n), dtype=torch.float64), lag)
        null = ((w @ h) * w).sum(-1) / count
        return _result(h.sum((-2, -1)) / count, null)

    return _in_blocks(block, k, noise, replicates * n)


def _relabelled(k: Tensor, chosen: Tensor, n: int, m: int, estimator: Estimator) -> Tensor:
    """(T, P) squared MMDs of the labellings ``chosen`` (T, P, N), 1 for the first sample and 0 for the second.

    With a labelling a, r the row sums and S the sum of K: the sums within the first sample, between the samples and
    within the second are A = a K a, r a - A and S - 2 r a + A.
    """
    diagonal = k.diagonal(dim1=-2, dim2=-1)
    off = k - torch.diag_embed(diagonal)
    within = ((chosen @ off) * chosen).sum(-1)
    rows = (chosen * off.sum(-1)[:, None, :]).sum(-1)
    other, cross = off.sum((-2, -1))[:, None] - 2.0 * rows + within, rows - within
    if estimator == "unbiased":
        return within / (n * (n - 1)) + other / (m * (m - 1)) - 2.0 * cross / (n * m)
    own = (chosen * diagonal[:, None, :]).sum(-1)
    rest = diagonal.sum(-1)[:, None] - own
    return (within + own) / n**2 + (other + rest) / m**2 - 2.0 * cross / (n * m)


def _autoregressive(e: Tensor, lag: float) -> Tensor:
    """(..., n) centred W_t = a W_{t-1} + sqrt(1 - a^2) e_t with W_0 = e_0, for standard normal ``e`` (..., n)."""
    n = e.shape[-1]
    t = torch.arange(n, dtype=e.dtype, device=e.device)
    a = torch.exp(torch.tensor(-1.0 / lag, dtype=e.dtype, device=e.device))
    past = torch.tril(a ** (t[:, None] - t[None, :]).clamp_min(0)) * torch.sqrt(1.0 - a**2)
    past[:, 0] = a**t
    w = e @ past.mT
    return w - w.mean(-1, keepdim=True)


def _result(observed: Tensor, null: Tensor) -> Tested:
    # Equal labellings give sums that differ by rounding, and count as equal.
    slack = 1e-12 * (1.0 + observed.abs())
    # NaN compares false to everything: written this way round, a broken kernel rejects nothing.
    extreme = (~(null < (observed - slack)[:, None])).sum(-1)
    return Tested(observed, (1.0 + extreme.to(observed.dtype)) / (1.0 + null.shape[1]))


def _in_blocks(block: Callable[[Tensor, NoiseStream], Tested], k: Tensor, noise: NoiseStream, numbers: int) -> Tested:
    """``block`` of all trials; ``numbers`` is how many random numbers a trial takes."""
    if len(k) != len(noise):
        raise ValueError(f"{len(k)} trials are to be tested with a noise stream of {len(noise)} rows: give one each.")
    rows = torch.arange(len(k), device=k.device).split(max(1, _BLOCK // numbers))
    found = [block(k[part], noise.select(part)) for part in rows]
    return Tested(torch.cat([f.statistic for f in found]), torch.cat([f.p_value for f in found]))
