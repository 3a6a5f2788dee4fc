"""The gap between a run with sample-specific noise levels and the frontier of fixed noise levels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lustral.evaluation.intervals import Comparison, resampled, verdict_of
from lustral.reporting.frontier import frontiers
from lustral.reporting.runs import Run
from lustral.reporting.sweeps import DERIVED
from lustral.reporting.words import fixed_level

Array = np.ndarray
NOISE = ("t_star", "rounds", "num_steps", *DERIVED)
"""The arguments of a purifier in which fixed levels may differ."""


@dataclass(frozen=True)
class Gap:
    """A run's robust accuracy minus that of fixed levels with the same clean accuracy.

    Attributes:
        run: the run's name.
        levels: the fixed levels that it is compared with, ascending, in noising steps out of 1000.
        rule: the verdict rule that all attacks aimed at.
        n: number of common images (of several replicates: verdicts on them).
        robust: the difference.
    """

    run: str
    levels: tuple[float, ...]
    rule: str
    n: int
    robust: Comparison


def frontier_gaps(runs: Sequence[Run]) -> list[Gap]:
    """The gap of every run with sample-specific levels to its purifier at fixed levels under the same attack, if there
    are at least two of these and records of common images."""
    return [gap for group in frontiers(runs) for run in group if (gap := _gap(run, group)) is not None]


def _gap(run: Run, group: Sequence[Run]) -> Gap | None:
    if "purifier" not in run.card["defence"]["purifier"] or fixed_level(run.card["defence"]) is not None:
        return None
    levels = [(level, each) for each in group if _is_rival(each, run) and (level := fixed_level(each.card["defence"]))]
    levels.sort(key=lambda pair: pair[0])
    rivals = [each for _, each in levels]
    common = sorted(set.intersection(*(set(each.records) for each in (run, *rivals))))
    if len(rivals) < 2 or not common:
        return None
    # (n, 2, 1 + rivals): clean and robust verdicts of the run and of its rivals, image by image
    verdicts = np.array([each.verdicts(run.target, common) for each in (run, *rivals)]).transpose(2, 1, 0)
    difference = float(above(verdicts.mean(0)))
    ends = []
    for labels in [labels for each in (run, *rivals) for labels in each.dependences(common)] or [None]:
        means = resampled(verdicts.reshape(len(common), -1), labels=labels).reshape(-1, *verdicts.shape[1:])
        ends.append(tuple(float(q) for q in np.quantile(above(means), (0.025, 0.975))))
    low, high = max(ends, key=lambda pair: pair[1] - pair[0])
    # The maximum over rivals is biased upwards, so the difference is biased against the run: it is never called worse.
    verdict = "better" if verdict_of(difference, low, high) == "better" else "undecided"
    compared = Comparison(difference, min(low, difference), max(high, difference), verdict)
    return Gap(run.name, tuple(level for level, _ in levels), run.target, len(common), compared)


def _is_rival(other: Run, run: Run) -> bool:
    """Whether ``other`` is the base purifier of ``run``, whatever its noise, under the same attack and protocol."""
    own, rival = (_without_noise(each.card["defence"]["purifier"]) for each in (run, other))
    draws = {each.card["protocol"]["verdict_draws"] for each in (run, other)}
    return own == rival and len(draws) == 1 and run.card["attack"] == other.card["attack"]


def _without_noise(purifier: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a purifier (of the inner one, if it is wrapped), without the arguments that set the amount of
    noise."""
    return {key: value for key, value in purifier.get("purifier", purifier).items() if key not in NOISE}


def above(means: Array) -> Array:
    """(...) robust accuracy of the first defence minus the highest of the others at its clean accuracy or above.

    A defence that chooses between two fixed levels at random for each image has any clean and robust accuracy on the
    line between theirs (or is more robust, as one perturbation must break both). So the others reach every point below
    or to the left of such a line. If none of them has the first defence's clean accuracy, the one with the highest
    clean accuracy is taken, and the gap does not count what the first defence gains in clean accuracy.

    Args:
        means: (..., 2, 1 + others) clean and robust accuracies, those of the first defence first.
    """
    clean, robust = means[..., 0, :], means[..., 1, :]
    wanted, others = clean[..., :1], clean[..., 1:]
    enough = others >= np.minimum(wanted, others.max(-1, keepdims=True))
    best = np.where(enough, robust[..., 1:], -np.inf).max(-1)
    for i in range(others.shape[-1]):
        for j in range(others.shape[-1]):
            low, high = others[..., i], others[..., j]
            between = (low < wanted[..., 0]) & (wanted[..., 0] <= high)
            share = (wanted[..., 0] - low) / np.where(between, high - low, 1.0)
            mixed = (1 - share) * robust[..., 1 + i] + share * robust[..., 1 + j]
            best = np.maximum(best, np.where(between, mixed, -np.inf))
    return robust[..., 0] - best
