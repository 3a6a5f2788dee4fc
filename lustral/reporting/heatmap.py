"""The heat map of an evaluation under common corruptions: accuracy by type and severity."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lustral.reporting.corruptions import RULE, in_words, sides_of
from lustral.reporting.runs import Card, Run
from lustral.reporting.style import WIDTH, style
from lustral.reporting.words import method_in_short

_COLOURS = "viridis"  # of even steps in lightness, also for colour-blind readers and in print
_DARK = 0.6
"""The accuracy from which on numbers are written dark: the colours are light there."""
MEAN = "mean"


def accuracies(card: Card, side: str) -> tuple[list[str], list[str], np.ndarray]:
    """The heat map's rows (types, and their mean last), its columns (severities, and their mean last), and accuracies
    in [0, 1] (rows, columns)."""
    found = card["accuracy"][RULE][side]
    names, severities = list(found["by_type"]), list(found["by_severity"])
    rows = [[*(found["cells"][n][s] for s in severities), found["by_type"][n]] for n in names]
    rows.append([*(found["by_severity"][s] for s in severities), found["mean"]])
    values = np.array([[rate["value"] for rate in row] for row in rows])
    return [*map(in_words, names), MEAN], [*severities, MEAN], values


def heat_map(card: Card) -> Figure:
    """Accuracy by type and severity in %, without and with purifier beside each other on one scale from 0 to 100."""
    sides = tuple(reversed(sides_of(card)))
    words = {"bare": "no purifier", "defended": _short(method_in_short(card["defence"]))}
    with style():
        names, _, _ = accuracies(card, sides[0])
        height = 0.85 + 0.2 * len(names)
        share = 1.0 if len(sides) == 2 else 0.62
        figure = Figure(figsize=(share * WIDTH, height), layout="constrained")
        panels = figure.subplots(1, len(sides), sharey=True, squeeze=False)[0]
        for axes, side in zip(panels, sides, strict=True):
            _panel(axes, *accuracies(card, side))
            clean = card["accuracy"][RULE][side].get("clean")
            below = "" if clean is None else f"\nclean: {100 * clean['value']:.1f} %"
            axes.set_title(f"{words[side]}{below}")
        bar = figure.colorbar(panels[-1].get_images()[0], ax=list(panels), fraction=0.04, pad=0.02)
        bar.set_label(f"accuracy in % (n = {card['n']}, {RULE})")
        bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _panel(axes: Axes, names: Sequence[str], severities: Sequence[str], values: np.ndarray) -> None:
    axes.imshow(100 * values, cmap=colormaps[_COLOURS], vmin=0, vmax=100, aspect="auto")
    for row, column in np.ndindex(*values.shape):
        value = values[row, column]
        edge = row == len(names) - 1 or column == len(severities) - 1
        colour, weight = "black" if value >= _DARK else "white", "bold" if edge else "normal"
        axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=colour, weight=weight, fontsize=7)
    axes.set_xticks(range(len(severities)), severities)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("severity")
    axes.axhline(len(names) - 1.5, color="white", linewidth=1.5)
    axes.axvline(len(severities) - 1.5, color="white", linewidth=1.5)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _short(words: str) -> str:
    return words if len(words) <= 36 else f"{words[:35].rstrip(' ,')}…"


def corruption_figures(runs: Sequence[Run]) -> dict[str, tuple[Figure, str]]:
    """A heat map for each run, with its caption, by file stem."""
    figures: dict[str, tuple[Figure, str]] = {}
    for run in runs:
        caption = (
            f"{run.name}: accuracy in % by type and severity of corruption (`{RULE}`), without and with purifier, "
            f"on the same {run.card['n']} images."
        )
        figures[f"corruptions_{run.name.replace('/', '_')}"] = (heat_map(run.card), caption)
    return figures
