"""Rates with their uncertainty, and the words in which two defences may be compared."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import norm

Verdict = Literal["better", "worse", "undecided"]

_Z = float(norm.ppf(0.975))
_RESAMPLES = 10_000
_CLUSTER_RESAMPLES = 4_000
_BOOTSTRAP_KEY = 0x1E57A1  # a fixed stream: the same records give the same interval, always


@dataclass(frozen=True)
class Rate:
    """A rate in [0, 1] with a 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson(successes: float, n: int) -> Rate:
    """Wilson's score interval of a binomial proportion (Wilson 1927)."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: a rate needs at least one sample and no more successes.")
    p = successes / n
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * np.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    # The ends are exact at 0 and n; elsewhere rounding could put an end on the wrong side of the rate.
    low = 0.0 if successes == 0 else min(p, float(centre - half))
    high = 1.0 if successes == n else max(p, float(centre + half))
    return Rate(p, low, high)


Clusters = Sequence[Sequence[Hashable]]
"""Labels of values, one list or several: values of one label depend on each other, and are resampled together."""


def bootstrap(values: Sequence[float], clusters: Clusters = ()) -> Rate:
    """The mean with a percentile interval over resampled images (Efron 1979), widened to Wilson's where all
    values are 0 or all are 1 and resampling would claim certainty.

    Args:
        clusters: images that are judged in groups are not independent, and neither are verdicts on the same image in
            several replicates, so that resampling them one by one would claim too much: then whole clusters are
            resampled, and of several labellings the widest interval counts. (As many clusters are Wilson's n.)
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
    """A paired difference (second minus first) with a 95 % interval, and what may be said of it."""

    difference: float
    low: float
    high: float
    verdict: Verdict


def compare(
    first: Sequence[float], second: Sequence[float], margin: float = 0.02, clusters: Clusters = ()
) -> Comparison:
    """Is the second defence better than the first on the same images? By a paired bootstrap, over ``clusters`` as in
    `bootstrap`.

    "better" or "worse" need an interval that excludes 0 and a difference of at least ``margin``; everything else
    is "undecided".
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"A paired comparison takes the same images, not {len(first)} and {len(second)} of them.")
    paired = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    difference = float(paired.mean())
    low, high = _interval(paired, clusters)
    verdict = verdict_of(difference, low, high, margin)
    return Comparison(difference, min(low, difference), max(high, difference), verdict)


def verdict_of(difference: float, low: float, high: float, margin: float = 0.02) -> Verdict:
    """What may be said of a ``difference`` with the interval from ``low`` to ``high`` (see `compare`)."""
    if low > 0 and difference >= margin:
        return "better"
    return "worse" if high < 0 and difference <= -margin else "undecided"


def resampled(values: np.ndarray, resamples: int = 2_000, labels: Sequence[Hashable] | None = None) -> np.ndarray:
    """(resamples, k) means of ``values`` (n, k) over resampled images, all columns over the same ones; of images with
    ``labels`` over resampled labels."""
    generator = np.random.Generator(np.random.Philox(key=_BOOTSTRAP_KEY))
    if labels is None:
        n = len(values)
        return np.stack([values[generator.integers(n, size=n)].mean(0) for _ in range(resamples)])
    sums, counts = _cluster_sums(values, labels)
    n, found = len(counts), []
    block = max(1, 2**20 // (n * sums.shape[1]))  # as many at once as are a few MiB
    for first in range(0, resamples, block):
        chosen = generator.integers(n, size=(min(block, resamples - first), n))
        found.append(sums[chosen].sum(1) / counts[chosen].sum(1)[:, None])
    return np.concatenate(found)


def _interval(sample: np.ndarray, clusters: Clusters) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of ``sample`` (n,); the widest, where there are several clusters."""
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
    """(clusters, k) sums of ``values`` (n, k) over each label in the labels' order, and (clusters,) their counts."""
    place = {label: i for i, label in enumerate(sorted(set(labels)))}  # type: ignore[type-var]
    rows = np.array([place[label] for label in labels])
    sums = np.zeros((len(place), values.shape[1]))
    np.add.at(sums, rows, values)
    return sums, np.bincount(rows, minlength=len(place))


def _resampled_means(sample: np.ndarray) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(key=_BOOTSTRAP_KEY))
    # Counts of each distinct value are enough, and far smaller than 10,000 resampled data sets.
    distinct, counts = np.unique(sample, return_counts=True)
    drawn = generator.multinomial(len(sample), counts / len(sample), size=_RESAMPLES)
    return drawn @ distinct / len(sample)
