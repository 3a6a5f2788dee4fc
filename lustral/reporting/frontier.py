"""Robust over clean accuracy of many runs, with the frontier of fixed noise levels."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from lustral.reporting.curves import percent_rate
from lustral.reporting.runs import Run, num_images
from lustral.reporting.style import INK, PALETTE, WIDTH, style
from lustral.reporting.words import attack_in_short, data_in_short, fixed_level, threat_in_short

_MARKERS = "oD^vsP*X"
_SMALLEST_RANGE = 10.0
"""The smallest range of an axis, in points of accuracy."""


def frontiers(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups of at least two defended runs that can be compared in one figure: those with the same data, classifier and
    threat whose attacks aimed at the same rule."""
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        if run.defended:
            groups[run.task, run.target].append(run)
    return [group for group in groups.values() if len(group) > 1]


def fixed_lines(runs: Sequence[Run]) -> dict[str, list[tuple[float, Run]]]:
    """The runs that give every image the same noise level, as (level, run) pairs in ascending order of level.

    They are grouped by a label: the purifier's class and, if there are several attacks, the attack.
    """
    found: dict[tuple[str, str], list[tuple[float, Run]]] = defaultdict(list)
    for run in runs:
        purifier, level = run.card["defence"]["purifier"], fixed_level(run.card["defence"])
        if level is not None:
            rounds = purifier.get("purifier", purifier)
            found[rounds["class"], attack_in_short(run.card["attack"])].append((level, run))
    several = len({attack for _, attack in found}) > 1
    return {
        f"{name}, one t for all" + (f" ({attack})" if several else ""): sorted(line, key=lambda pair: pair[0])
        for (name, attack), line in found.items()
    }


def frontier(runs: Sequence[Run]) -> Figure:
    """Robust over clean accuracy with 95 % intervals.

    Runs with one noise level for all images are small dots, labelled with the level and joined by a line; every other
    run has a colour. The markers of suspect runs are hollow.

    Args:
        runs: with the same data, classifier, threat and rule (see `frontiers`).
    """
    lines = fixed_lines(runs)
    joined = {run.name for line in lines.values() for _, run in line}
    rule = runs[0].target
    with style():
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        axes = figure.add_subplot()
        for (label, line), dashes in zip(lines.items(), cycle(("-", "--", ":", "-.")), strict=False):
            for level, run in line:
                x, y = _point(axes, run, rule, INK, "o", 3.5)
                # Labels go below and to the left of the points, where there is no better run to hide.
                beside = {"textcoords": "offset points", "ha": "right", "va": "top", "fontsize": 7, "zorder": 6}
                halo = [withStroke(linewidth=2, foreground="white")]
                axes.annotate(f"t = {level:.3g}", (x, y), (-4, -3), path_effects=halo, **beside)
            values = [[percent_rate(run, rule, kind).value for _, run in line] for kind in ("clean", "robust")]
            axes.plot(*values, color=INK, linewidth=0.9, linestyle=dashes, zorder=2)
            axes.plot([], [], color=INK, linewidth=0.9, linestyle=dashes, marker="o", markersize=3.5, label=label)
        others = [run for run in runs if run.name not in joined]
        for number, run in enumerate(others):
            colour, marker = PALETTE[number % len(PALETTE)], _MARKERS[number % len(_MARKERS)]
            _point(axes, run, rule, colour, marker, 6)
            axes.plot([], [], color=colour, marker=marker, markersize=6, linestyle="", label=run.name)
        _widen(axes)
        axes.set_xlabel(f"accuracy on clean images in % ({rule})")
        axes.set_ylabel(f"accuracy under attack in % ({rule})")
        card = runs[0].card
        words = [data_in_short(card["data"]), threat_in_short(card["attack"]["threat"]), f"n = {num_images(runs)}"]
        axes.set_title(", ".join(word for word in words if word))
        axes.grid()
        figure.legend(loc="outside right upper", handlelength=1.8)
    return figure


def _point(axes: Axes, run: Run, rule: str, colour: str, marker: str, size: float) -> tuple[float, float]:
    clean, robust = (percent_rate(run, rule, kind) for kind in ("clean", "robust"))
    axes.errorbar(
        clean.value,
        robust.value,
        yerr=[[robust.value - robust.low], [robust.high - robust.value]],
        xerr=[[clean.value - clean.low], [clean.high - clean.value]],
        color=colour,
        alpha=0.35,
        linewidth=0.7,
        zorder=1,
    )
    face = colour if run.card["status"] == "ok" else "white"
    axes.plot(clean.value, robust.value, marker, color=colour, markersize=size, markerfacecolor=face, zorder=3)
    return clean.value, robust.value


def _widen(axes: Axes) -> None:
    """Widen both axes to at least `_SMALLEST_RANGE`, and limit them to slightly beyond 0 and 100."""
    for limits, change in ((axes.get_xlim(), axes.set_xlim), (axes.get_ylim(), axes.set_ylim)):
        spare = max(0.0, _SMALLEST_RANGE - (limits[1] - limits[0])) / 2
        low, high = max(0.0, limits[0] - spare), min(100.0, limits[1] + spare)
        change(low - 0.02 * (high - low), high + 0.02 * (high - low))  # a margin, so that no marker is cut off
