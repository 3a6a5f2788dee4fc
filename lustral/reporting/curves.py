"""Curves of accuracy against a swept argument."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from lustral.evaluation import Rate
from lustral.reporting.runs import Run, num_images
from lustral.reporting.style import CLEAN, INK, ROBUST, WIDTH, points, style
from lustral.reporting.sweeps import Sweep
from lustral.reporting.words import argument_in_words, method_in_short

_MANY = 8
"""The largest number of values that are all labelled on the axis."""
_WIDE = 16.0
"""The ratio of the largest to the smallest value from which the axis is logarithmic."""


def sweep_curve(sweep: Sweep, undefended: Mapping[str, Run]) -> Figure:
    """Clean and robust accuracy over the argument's values, under the rule that the attacks aimed at, with 95 %
    intervals. The markers of suspect runs are hollow.

    Args:
        sweep: runs that differ in the argument only.
        undefended: runs without a purifier by their `Run.task`; if the sweep's task has one, its accuracies are drawn
            as dashed lines.
    """
    rule, first = sweep.runs[0].target, sweep.runs[0].card
    suspect = [run.card["status"] != "ok" for run in sweep.runs]
    beside = [(x, undefended.get(run.task)) for x, run in zip(sweep.values, sweep.runs, strict=True)]
    dashed = [(x, run) for x, run in beside if run is not None] if sweep.runs[0].defended else []
    with style():
        figure = Figure(figsize=(0.66 * WIDTH, 2.8), layout="constrained")
        axes = figure.add_subplot()
        for kind, colour, label, marker in (("clean", CLEAN, "clean", "s"), ("robust", ROBUST, "under attack", "o")):
            rates = [percent_rate(run, rule, kind) for run in sweep.runs]
            points(axes, sweep.values, rates, colour, label, marker, hollow=suspect)
            if dashed:
                values = [percent_rate(run, rule, kind).value for _, run in dashed]
                axes.plot([x for x, _ in dashed], values, color=colour, linestyle="--", linewidth=0.9)
        if dashed:
            axes.plot([], [], color=INK, linestyle="--", linewidth=0.9, label="undefended")
        value_axis(axes, sweep)
        axes.set_ylim(0, 100)
        axes.set_ylabel(f"accuracy in % ({rule})")
        axes.grid(axis="y")
        axes.set_title(f"{method_in_short(first['defence'])}, n = {num_images(sweep.runs)}")
        figure.legend(loc="outside upper right", ncols=3, handlelength=1.6)
    return figure


def percent_rate(run: Run, rule: str, kind: str) -> Rate:
    """The "clean" or "robust" accuracy of a run under ``rule``, in per cent."""
    entry = run.card["verdicts"][rule][kind]
    return Rate(*(100 * entry[end] for end in ("value", "low", "high")))


def value_axis(axes: Axes, sweep: Sweep) -> None:
    """Label the horizontal axis with the argument and its values; it is logarithmic if they span a wide range."""
    values = sweep.values
    if values[0] > 0 and values[-1] / values[0] >= _WIDE:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    if len(values) <= _MANY:
        axes.set_xticks(values, sweep.labels)
    axes.set_xlabel(argument_in_words(sweep.argument, sweep.runs[0].card["attack"]["threat"]["norm"]))
