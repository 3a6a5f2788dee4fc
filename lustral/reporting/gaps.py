"""How far a run lies above what fixed noise levels can do: the question that sample-specific noise has to answer."""

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
    """A run's robust accuracy minus that of fixed levels which are as accurate on clean images.

    Attributes:
        run: its name.
        levels: the fixed levels it is compared with, ascending, in noising steps out of 1000.
        rule: the verdict rule that all their attacks aimed at.
        n: common images.
        robust: the difference.
    """

    run: str
    levels: tuple[float, ...]
    rule: str
    n: int
    robust: Comparison


def frontier_gaps(runs: Sequence[Run]) -> list[Gap]:
    """Every run with sample-specific levels against its purifier at fixed levels under the same attack, where there are
    two of those at least and records of common images."""
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
    # The most of several is a little lucky: a difference leans against the run, and none is called worse.
    verdict = "better" if verdict_of(difference, low, high) == "better" else "undecided"
    compared = Comparison(difference, min(low, difference), max(high, difference), verdict)
    return Gap(run.name, tuple(level for level, _ in levels), run.target, len(common), compared)


def _is_rival(other: Run, run: Run) -> bool:
    """Whether ``other`` is the base purifier of ``run``, whatever its noise, under the same attack and protocol."""
    own, rival = (_without_noise(each.card["defence"]["purifier"]) for each in (run, other))
    draws = {each.card["protocol"]["verdict_draws"] for each in (run, other)}
    return own == rival and len(draws) == 1 and run.card["attack"] == other.card["attack"]


def _without_noise(purifier: Mapping[str, Any]) -> dict[str, Any]:
    """A purifier, or that which a wrapper is over, without the arguments that say how much noise there is."""
    return {key: value for key, value in purifier.get("purifier", purifier).items() if key not in NOISE}


def above(means: Array) -> Array:
    """(...) robust accuracy of the first defence minus the most that the others give at its clean accuracy or above.

    Two fixed levels, one of them drawn at random for each image, make any accuracies on the line between theirs (and
    more robust ones, as one attack must serve both): so the others give all that lies below or to the left of such a
    line. If none is as accurate on clean images, the most accurate of them counts, and the gap leaves out what the
    first gains there.

    Args:
        means: (..., 2, 1 + others) clean and robust accuracies.
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
