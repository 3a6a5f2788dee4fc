"""How far a run lies above what fixed noise levels can do: the question that sample-specific noise has to answer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lustral.evaluation.intervals import Comparison, resampled, verdict_of
from lustral.reporting.frontier import fixed_lines, frontiers
from lustral.reporting.runs import Run

Array = np.ndarray


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
    """Every run with sample-specific levels against the fixed levels of its base purifier, where there are two at
    least and records of common images."""
    found = []
    for group in frontiers(runs):
        for line in fixed_lines(group).values():
            if len(line) > 1:
                found += [gap for run in group if (gap := _gap(run, line)) is not None]
    return found


def _gap(run: Run, line: Sequence[tuple[float, Run]]) -> Gap | None:
    base = run.card["defence"]["purifier"].get("purifier", {}).get("class")
    fixed = line[0][1].card["defence"]["purifier"]
    rivals = [each for _, each in line]
    if base != fixed.get("purifier", fixed)["class"] or run in rivals:
        return None
    if run.card["attack"] != rivals[0].card["attack"]:
        return None
    common = sorted(set.intersection(*(set(each.records) for each in (run, *rivals))))
    if not common:
        return None
    # (n, 2, 1 + rivals): clean and robust verdicts of the run and of its rivals, image by image
    verdicts = np.array([each.verdicts(run.target, common) for each in (run, *rivals)]).transpose(2, 1, 0)
    difference = float(above(verdicts.mean(0)))
    means = resampled(verdicts.reshape(len(common), -1)).reshape(-1, *verdicts.shape[1:])
    low, high = (float(q) for q in np.quantile(above(means), (0.025, 0.975)))
    compared = Comparison(difference, min(low, difference), max(high, difference), verdict_of(difference, low, high))
    return Gap(run.name, tuple(level for level, _ in line), run.target, len(common), compared)


def above(means: Array) -> Array:
    """(...) robust accuracy of the first defence minus the most that the others give at its clean accuracy or above.

    Two fixed levels, one of them drawn for every query, make any accuracies on the line between theirs: so the others
    give all that lies below or to the left of such a line. If none is as accurate on clean images, the most accurate
    of them counts, and the gap leaves out what the first gains there.

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
