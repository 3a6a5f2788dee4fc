"""Squared maximum mean discrepancies of Gram matrices, and the test power that trains a kernel.

Gretton et al., "A kernel two-sample test", JMLR 2012: k_xx (..., n, n), k_yy (..., m, m) and k_xy (..., n, m) are the
values of the kernel within the samples x and y, and between them. All functions work over leading dimensions.
"""

from typing import Literal

import torch
from torch import Tensor

from lustral.detectors.kernels import Embedded, Kernel

Estimator = Literal["unbiased", "biased"]

_REGULARISER = 1e-8


def unbiased(k_xx: Tensor, k_yy: Tensor, k_xy: Tensor) -> Tensor:
    """(...) the U-statistic of MMD^2: sum_{i != j} k_xx / n(n-1) + sum_{i != j} k_yy / m(m-1) - 2 mean k_xy.

    Its mean is zero if both samples are of one distribution, for every n and m >= 2 (Gretton et al., lemma 6).

    Raises:
        ValueError: if a sample has fewer than two images.
    """
    return off_diagonal_mean(k_xx) + off_diagonal_mean(k_yy) - 2.0 * k_xy.mean((-2, -1))


def biased(k_xx: Tensor, k_yy: Tensor, k_xy: Tensor) -> Tensor:
    """(...) the V-statistic: mean k_xx + mean k_yy - 2 mean k_xy, diagonals included.

    Its mean under equal distributions is about (1/n + 1/m)(1 - E k), so a threshold for one n means nothing at another.
    It is what DAD deploys.
    """
    return k_xx.mean((-2, -1)) + k_yy.mean((-2, -1)) - 2.0 * k_xy.mean((-2, -1))


def paired(k_xx: Tensor, k_yy: Tensor, k_xy: Tensor) -> Tensor:
    """(...) the U-statistic of pairs (x_i, y_i), as kernels are trained: `unbiased`, but without the n terms
    k(x_i, y_i) of the cross sum, sum_{i != j} (k_xx + k_yy - 2 k_xy)_ij / n(n-1).

    Raises:
        ValueError: if the samples differ in size or have fewer than two images.
    """
    _check_equal(k_xx, k_yy)
    return off_diagonal_mean(k_xx) + off_diagonal_mean(k_yy) - 2.0 * off_diagonal_mean(k_xy)


def variance(k_xx: Tensor, k_yy: Tensor, k_xy: Tensor) -> Tensor:
    """(...) the estimated variance of sqrt(n) MMD^2 under the alternative: 4 [mean_i h_i^2 - (mean_i h_i)^2], h_i the
    mean over j of H = k_xx + k_yy - k_xy - k_xy^T, diagonal included (Liu et al. 2020, equation 5).

    Raises:
        ValueError: if the samples differ in size.
    """
    _check_equal(k_xx, k_yy)
    rows = pair_matrix(k_xx, k_yy, k_xy).mean(-1)
    # About the mean of the rows: the difference of two means of squares would lose half of the digits.
    return 4.0 * (rows - rows.mean(-1, keepdim=True)).square().mean(-1)


def power_objective(k_xx: Tensor, k_yy: Tensor, k_xy: Tensor) -> Tensor:
    """(...) J = (MMD^2 + 1e-8) / sqrt(variance + 1e-8) with `paired` and `variance`: the larger, the more power a test
    with this kernel has (Liu et al. 2020, equations 3 and 4). The samples are of one size."""
    signal = paired(k_xx, k_yy, k_xy) + _REGULARISER
    return signal / torch.sqrt(variance(k_xx, k_yy, k_xy) + _REGULARISER)


def null_deviation(k_xx: Tensor, k_yy: Tensor, k_xy: Tensor, n: int) -> Tensor:
    """(...) the standard deviation of `unbiased` for two samples of ``n`` out of the pool of x and y.

    Under equal distributions the U-statistic is degenerate, of variance 2 E h^2 / n(n-1); h is a sum of four
    uncorrelated terms of the centred kernel, so E h^2 = 4 E k~^2, with k~ the pool's doubly centred Gram matrix off its
    diagonal.
    """
    k = torch.cat((torch.cat((k_xx, k_xy), -1), torch.cat((k_xy.mT, k_yy), -1)), -2)
    k = k - k.mean(-1, keepdim=True) - k.mean(-2, keepdim=True) + k.mean((-2, -1), keepdim=True)
    return torch.sqrt(8.0 * off_diagonal_mean(k.square()) / (n * (n - 1)))


def finite_power(k_xx: Tensor, k_yy: Tensor, k_xy: Tensor, n: int, level: float = 0.05) -> Tensor:
    """(...) (MMD^2 - z s_0) / sqrt(variance / n + s_0^2): the normal quantile of the power of a test of ``n`` against n
    images, with s_0 the `null_deviation` at n and z that of 1 - level.

    `power_objective` is its limit for large n, where the threshold z s_0, of order 1 / n, has vanished beside the
    spread, of order 1 / sqrt(n). At the sizes of a batch it has not, and a kernel that maximises J loses power there.
    x_i and y_i must not come from one source image, or the variance is too small.

    Raises:
        ValueError: if the samples differ in size.
    """
    null = null_deviation(k_xx, k_yy, k_xy, n)
    z = torch.special.ndtri(torch.tensor(1.0 - level, dtype=k_xx.dtype, device=k_xx.device))
    spread = torch.sqrt(variance(k_xx, k_yy, k_xy) / n + null.square() + 1e-300)
    return (unbiased(k_xx, k_yy, k_xy) - z * null) / spread


def pair_matrix(k_xx: Tensor, k_yy: Tensor, k_xy: Tensor) -> Tensor:
    """(..., n, n): H_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)."""
    return k_xx + k_yy - k_xy - k_xy.mT


def grams(kernel: Kernel, x: Embedded, y: Embedded) -> tuple[Tensor, Tensor, Tensor]:
    """k_xx, k_yy and k_xy of two embedded samples."""
    return kernel.gram(x, x), kernel.gram(y, y), kernel.gram(x, y)


def mmd(kernel: Kernel, x: Tensor, y: Tensor, estimator: Estimator = "unbiased") -> Tensor:
    """() float64 squared MMD between images ``x`` (n, C, H, W) and ``y`` (m, C, H, W).

    Args:
        kernel: the kernel.
        x: one sample, such as the reference.
        y: the other, of any size.
        estimator: "unbiased" (`unbiased`) or "biased" (`biased`).
    """
    return combined(estimator, *grams(kernel, kernel.embed(x), kernel.embed(y)))


def combined(estimator: Estimator, k_xx: Tensor, k_yy: Tensor, k_xy: Tensor) -> Tensor:
    """(...) the estimate that is named.

    Raises:
        ValueError: if there is none of that name.
    """
    if estimator not in ("unbiased", "biased"):
        raise ValueError(f"The estimator of the MMD is {estimator!r}; it may be unbiased or biased.")
    return unbiased(k_xx, k_yy, k_xy) if estimator == "unbiased" else biased(k_xx, k_yy, k_xy)


def off_diagonal_mean(k: Tensor) -> Tensor:
    """(...) mean of (..., n, n) without the diagonal.

    Raises:
        ValueError: if n is below 2.
    """
    n = k.shape[-1]
    if n < 2:
        raise ValueError("An unbiased MMD takes at least two images in each sample: give more, or take the biased one.")
    return (k.sum((-2, -1)) - k.diagonal(dim1=-2, dim2=-1).sum(-1)) / (n * (n - 1))


def _check_equal(k_xx: Tensor, k_yy: Tensor) -> None:
    if k_xx.shape[-1] != k_yy.shape[-1]:
        raise ValueError(
            f"The samples have {k_xx.shape[-1]} and {k_yy.shape[-1]} images, but pairs are compared: give as many of "
            "each, or take the unbiased estimator."
        )
