"""Rates with their uncertainty, and paired comparisons of two defences."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import norm

Verdict = Literal["better", "worse", "undecided"]

_Z = float(norm.ppf(0.975))
_RESAMPLES = 10_000
_CLUSTER_RESAMPLES = 4_000
_BOOTSTRAP_KEY = 0x1E57A1  # a fixed key: the same records always give the same interval


@dataclass(frozen=True)
class Rate:
    """A rate in [0, 1] with a 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson(successes: float, n: int) -> Rate:
    """A binomial proportion with Wilson's 95 % score interval (Wilson 1927).

    Raises:
        ValueError: if ``n`` is below 1, or ``successes`` not in [0, n].
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: a rate needs at least one sample and no more successes.")
    p = successes / n
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * np.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    # The interval ends exactly at 0 or 1 for 0 or n successes; elsewhere rounding must not exclude the rate itself.
    low = 0.0 if successes == 0 else min(p, float(centre - half))
    high = 1.0 if successes == n else max(p, float(centre + half))
    return Rate(p, low, high)


Clusters = Sequence[Sequence[Hashable]]
"""One or several labellings, each with a label for every value: values with equal labels are not independent, and are
resampled together."""


def bootstrap(values: Sequence[float], clusters: Clusters = ()) -> Rate:
    """The mean with a 95 % percentile interval over resampled images (Efron 1979).

    Where all values are 0 or all are 1, resampling would give an interval of width 0; Wilson's is taken instead.

    Args:
        values: (n,) in [0, 1].
        clusters: labellings of values that are not independent: images that are judged in one group, verdicts on one
            image in several replicates. Resampling these one by one would give too narrow an interval, so whole
            clusters are resampled; of several labellings the widest interval is taken. (Wilson's n is then the number
            of clusters, the smallest of all labellings.)
    """
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    if np.all(sample == sample[0]) and sample[0] in (0.0, 1.0):
        independent = min((len(set(labels)) for labels in clusters), default=len(sample))
        return wilson(float(sample[0]) * independent, independent)
    low, high = _interval(sample, clusters)
    return Rate(mean, min(low, mean), max(high, mean))


@dataclass(frozen=True)
class Comparison:
    """A paired difference (second minus first) with a 95 % interval, and its verdict (see `compare`)."""

    difference: float
    low: float
    high: float
    verdict: Verdict


def compare(
    first: Sequence[float], second: Sequence[float], margin: float = 0.02, clusters: Clusters = ()
) -> Comparison:
    """Whether the second defence is better than the first on the same images, by a paired bootstrap.

    The verdict is "better" or "worse" if the interval excludes 0 and the difference is at least ``margin``, else
    "undecided".

    Args:
        first, second: (n,) verdicts in [0, 1] on the same images in the same order.
        margin: smallest difference that counts, 0.02 being 2 points.
        clusters: as for `bootstrap`.

    Raises:
        ValueError: if the lengths differ or are 0.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"A paired comparison takes the same images, not {len(first)} and {len(second)} of them.")
    paired = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    difference = float(paired.mean())
    low, high = _interval(paired, clusters)
    verdict = verdict_of(difference, low, high, margin)
    return Comparison(difference, min(low, difference), max(high, difference), verdict)


def verdict_of(difference: float, low: float, high: float, margin: float = 0.02) -> Verdict:
    """The verdict on a ``difference`` with the interval from ``low`` to ``high`` (see `compare`)."""
    if low > 0 and difference >= margin:
        return "better"
    return "worse" if high < 0 and difference <= -margin else "undecided"


def resampled(values: np.ndarray, resamples: int = 2_000, labels: Sequence[Hashable] | None = None) -> np.ndarray:
    """(resamples, k) means of ``values`` (n, k) over resampled images, the same for all columns; with ``labels`` (n,),
    whole labels are resampled."""
    generator = np.random.Generator(np.random.Philox(key=_BOOTSTRAP_KEY))
    if labels is None:
        n = len(values)
        return np.stack([values[generator.integers(n, size=n)].mean(0) for _ in range(resamples)])
    sums, counts = _cluster_sums(values, labels)
    n, found = len(counts), []
    block = max(1, 2**20 // (n * sums.shape[1]))  # resamples per block, to use a few MiB at a time
    for first in range(0, resamples, block):
        chosen = generator.integers(n, size=(min(block, resamples - first), n))
        found.append(sums[chosen].sum(1) / counts[chosen].sum(1)[:, None])
    return np.concatenate(found)


def _interval(sample: np.ndarray, clusters: Clusters) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of ``sample`` (n,); the widest over several labellings."""
    if not clusters:
        low, high = np.quantile(_resampled_means(sample), (0.025, 0.975))
        return float(low), float(high)
    found = []
    for labels in clusters:
        means = resampled(sample[:, None], _CLUSTER_RESAMPLES, labels)[:, 0]
        low, high = (float(end) for end in np.quantile(means, (0.025, 0.975)))
        found.append((low, high))
    return max(found, key=lambda ends: ends[1] - ends[0])


def _cluster_sums(values: np.ndarray, labels: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """(clusters, k) sums of ``values`` (n, k) over each label, sorted by label, and (clusters,) their counts."""
    place = {label: i for i, label in enumerate(sorted(set(labels)))}  # type: ignore[type-var]
    rows = np.array([place[label] for label in labels])
    sums = np.zeros((len(place), values.shape[1]))
    np.add.at(sums, rows, values)
    return sums, np.bincount(rows, minlength=len(place))


def _resampled_means(sample: np.ndarray) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(key=_BOOTSTRAP_KEY))
    # Resampling only the counts of each distinct value takes far less memory than 10,000 resampled data sets.
    distinct, counts = np.unique(sample, return_counts=True)
    drawn = generator.multinomial(len(sample), counts / len(sample), size=_RESAMPLES)
    return drawn @ distinct / len(sample)
