"""How well a statistic tells two kinds of image apart: the area under the ROC curve, and rates at a threshold."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm, rankdata

from lustral.evaluation.intervals import Rate, wilson

_Z = float(norm.ppf(0.975))


def auroc(clean: Sequence[float] | np.ndarray, suspect: Sequence[float] | np.ndarray) -> Rate:
    """P(clean < suspect) + P(equal) / 2 over all pairs, with a 95 % interval.

    The interval is that of DeLong et al. (1988) by placement values, but for pairs: ``clean[i]`` and ``suspect[i]`` are
    of one source image, so their placements are added before the variance over images is taken. Where all placements
    are 0 or all are 1 it is Wilson's for as many images.

    Args:
        clean: (n,) statistics of clean images, higher is more suspicious.
        suspect: (n,) of the same images, perturbed.

    Raises:
        ValueError: if the numbers differ or are below 2, or one is NaN.
    """
    x, y = np.asarray(clean, dtype=np.float64), np.asarray(suspect, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2 or np.isnan(x).any() or np.isnan(y).any():
        raise ValueError(
            f"An AUROC takes as many clean as perturbed images, at least 2 and no NaN: {x.shape}, {y.shape}."
        )
    n = len(x)
    ranks, own_x, own_y = rankdata(np.concatenate((x, y))), rankdata(x), rankdata(y)
    below = (ranks[n:] - own_y) / n  # for each suspect image the share of clean ones below
    above = 1.0 - (ranks[:n] - own_x) / n  # for each clean image the share of suspect ones above
    value = float(below.mean())
    if value in (0.0, 1.0):
        return wilson(value * n, n)
    half = _Z * float(np.std(below + above, ddof=1)) / np.sqrt(n)
    return Rate(value, max(0.0, value - half), min(1.0, value + half))


def detected_share(clean: Sequence[float] | np.ndarray, suspect: Sequence[float] | np.ndarray, rate: float) -> Rate:
    """The share of suspect images above the threshold that at most a share ``rate`` of clean ones exceeds."""
    x, y = np.sort(np.asarray(clean, dtype=np.float64)), np.asarray(suspect, dtype=np.float64)
    threshold = x[len(x) - 1 - int(np.floor(rate * len(x) + 1e-9))]
    return wilson(int((y > threshold).sum()), len(y))


def smallest_detectable(budgets: Sequence[float], areas: Sequence[float], area: float = 0.95) -> float | None:
    """The budget below which the area falls under ``area``: between the largest measured budget whose area does, and
    the next one, linearly; None if no area is under it, infinity if the last one is.

    Args:
        budgets: ascending.
        areas: the area at each.
        area: the wanted one.
    """
    under = [i for i, value in enumerate(areas) if value < area]
    if not under:
        return None
    i = under[-1]
    if i == len(budgets) - 1:
        return float("inf")
    share = (area - areas[i]) / (areas[i + 1] - areas[i])
    return float(budgets[i] + share * (budgets[i + 1] - budgets[i]))
