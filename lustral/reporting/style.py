"""The style of figures, and how they are saved."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lustral.evaluation import Rate

CLEAN = "#0072B2"
"""Blue of Okabe and Ito's palette, which colour-blind readers can tell from `ROBUST`."""
ROBUST = "#D55E00"
"""Vermilion of the same palette."""
PALETTE = (ROBUST, CLEAN, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours of the palette for other purposes."""
INK = "#333333"
FAINT = "#D9D9D9"
WIDTH = 6.8
"""Width of a text column in inches."""
_LONG_NAME = 26
"""Number of characters that fit above one of three axes side by side."""

_RC = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same figure everywhere
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "hatch.linewidth": 0.6,
    "pdf.fonttype": 42,  # TrueType: what conferences ask for
    "savefig.dpi": 200,
}


@contextmanager
def style() -> Iterator[None]:
    """Use Lustral's matplotlib settings in this context, instead of the user's; these are restored afterwards."""
    with mpl.rc_context():
        mpl.rcdefaults()
        parameters: Any = mpl.rcParams  # its newest stubs know the keys as literals only
        parameters.update(_RC)
        yield


def percent_axis(axes: Axes, label: str) -> None:
    """Make the horizontal axis a percentage from 0 to 100, with a faint grid."""
    axes.set_xlim(0, 100)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel(label)
    axes.grid(axis="x")


def points(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[Rate],
    colour: str,
    label: str | None,
    marker: str = "o",
    line: str = "-",
    hollow: Sequence[bool] = (),
) -> None:
    """Draw a line through points with their intervals; markers that are ``hollow`` (usually suspect runs) are not
    filled."""
    values = [each.value for each in y]
    ends = [[each.value - each.low for each in y], [each.high - each.value for each in y]]
    axes.errorbar(x, values, ends, color=colour, linestyle=line, linewidth=1.1, elinewidth=0.8, capsize=2, zorder=2)
    style_ = {"edgecolors": colour, "linewidths": 0.9, "zorder": 3, "clip_on": False}
    faces = ["white" if i < len(hollow) and hollow[i] else colour for i in range(len(values))]
    axes.scatter(x, values, s=18, marker=marker, c=faces, label=None, **style_)
    axes.plot([], [], color=colour, linestyle=line, linewidth=1.1, marker=marker, markersize=4, label=label)


def small_multiples(names: Sequence[str], height: float) -> tuple[Figure, list[Axes]]:
    """A figure with axes for each name, ``height`` inches high; with long names there are fewer per row."""
    longest = max(len(name) for name in names)
    columns = min(len(names), 3 if longest <= _LONG_NAME else 2)
    rows = math.ceil(len(names) / columns)
    width = WIDTH if columns > 1 else 0.6 * WIDTH
    figure = Figure(figsize=(width, rows * (height + 0.5) + 0.2), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for unused in panels[len(names) :]:
        unused.remove()
    return figure, panels[: len(names)]


def save(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Write ``stem.png`` (200 dpi) and ``stem.pdf``; equal figures give equal files."""
    paths = [folder / f"{stem}.png", folder / f"{stem}.pdf"]
    with style():
        figure.savefig(paths[0], bbox_inches="tight", pad_inches=0.04)
        figure.savefig(paths[1], bbox_inches="tight", pad_inches=0.04, metadata={"CreationDate": None})
    return paths
