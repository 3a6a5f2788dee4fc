"""Charts of sample-specific noise: the levels that images get, and their scores against the attack's budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from lustral.reporting.curves import value_axis
from lustral.reporting.runs import Run, num_images
from lustral.reporting.style import CLEAN, INK, ROBUST, WIDTH, points, small_multiples, style
from lustral.reporting.sweeps import Sweep
from lustral.reporting.words import full_level, method_in_short

_BARS = 20
"""The approximate number of bars of a histogram."""


@dataclass(frozen=True)
class Levels:
    """The noise levels of a run's images in the first round, in noising steps out of 1000.

    Attributes:
        clean: the level of each clean image, mean over its verdict draws.
        adversarial: the level of each adversarial image, mean over its verdict draws.
        full: the purifier's t*; None if it has none.
    """

    clean: Sequence[float]
    adversarial: Sequence[float]
    full: float | None


def levels_of(run: Run) -> Levels | None:
    """The levels in the run's records; None if there are none, or the same level for all images."""
    clean, adversarial = run.statistic("level_clean"), run.statistic("level_adversarial")
    if len({*clean, *adversarial}) < 2:
        return None
    return Levels(clean, adversarial, full_level(run.card["defence"]))


def level_histogram(levels: Mapping[str, Levels]) -> Figure:
    """Histograms of the images' noise levels, clean and under attack; the dashed line is t*.

    Args:
        levels: the levels of each run, by the run's name.
    """
    with style():
        figure, panels = small_multiples(list(levels), 1.75)
        tallest = 0.0
        for number, (axes, (run, found)) in enumerate(zip(panels, levels.items(), strict=True)):
            edges = bar_edges([*found.clean, *found.adversarial])
            for values, colour, label in (
                (found.clean, CLEAN, "clean"),
                (found.adversarial, ROBUST, "under attack"),
            ):
                heights = 100 * np.histogram(values, edges)[0] / len(values)
                tallest = max(tallest, heights.max())
                axes.stairs(heights, edges, fill=True, color=colour, alpha=0.35)
                axes.stairs(heights, edges, color=colour, linewidth=1.0, label=label if number == 0 else None)
            if found.full is not None:
                label = "t* of the purifier" if number == 0 else None
                axes.axvline(found.full, color=INK, linewidth=0.8, linestyle="--", label=label)
            axes.set_title(f"{run}\nn = {len(found.clean)}")
            axes.set_xlabel("level t (noising steps of 1000)")
            axes.set_xlim(left=0)
            axes.grid(axis="y")
        panels[0].set_ylim(0, min(100, 1.08 * tallest))
        figure.supylabel("images in %", fontsize="medium")
        figure.legend(loc="outside upper right", ncols=3, handlelength=1.2)
    return figure


def bar_edges(values: Sequence[float]) -> np.ndarray:
    """The edges of a histogram's bars: their width is a whole number of noising steps, and bars of width 1 are centred
    on whole levels."""
    low, high = np.floor(min(values) + 0.5), np.floor(max(values) + 0.5)
    width = max(1, round((high - low) / _BARS))
    bars = int((high - low) // width) + 1
    return low - 0.5 + width * np.arange(bars + 1)


def score_curve(sweep: Sweep) -> Figure:
    """Mean perturbation score over the attack's budget, with 95 % intervals; the bands hold the middle 80 % of the
    images.

    Args:
        sweep: runs that differ in eps, whose records have scores.
    """
    first = sweep.runs[0].card
    with style():
        figure = Figure(figsize=(0.66 * WIDTH, 2.8), layout="constrained")
        axes = figure.add_subplot()
        for kind, colour, label, marker in (
            ("clean", CLEAN, "clean", "s"),
            ("adversarial", ROBUST, "under attack", "o"),
        ):
            scores = [run.statistic(f"score_{kind}") for run in sweep.runs]
            low, high = np.array([np.quantile(values, (0.1, 0.9)) for values in scores]).T
            axes.fill_between(sweep.values, low, high, color=colour, alpha=0.15, linewidth=0)
            means = [run.statistic_mean(f"score_{kind}") for run in sweep.runs]
            points(axes, sweep.values, means, colour, label, marker)
        value_axis(axes, sweep)
        axes.set_ylabel("norm of the perturbation score")
        axes.set_title(f"{method_in_short(first['defence'])}, n = {num_images(sweep.runs)}")
        axes.grid(axis="y")
        figure.legend(loc="outside upper right", ncols=2, handlelength=1.2)
    return figure
