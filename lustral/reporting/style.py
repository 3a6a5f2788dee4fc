"""How every figure looks, and how it is saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

CLEAN = "#0072B2"
"""Blue of Okabe and Ito's palette, which colour-blind readers can tell from `ROBUST`."""
ROBUST = "#D55E00"
"""Vermilion of the same palette."""
INK = "#333333"
FAINT = "#D9D9D9"
WIDTH = 6.8
"""Inches of a text column."""

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
    """Lustral's settings, whatever the user's matplotlibrc says; theirs are back afterwards."""
    with mpl.rc_context():
        mpl.rcdefaults()
        parameters: Any = mpl.rcParams  # its newest stubs know the keys as literals only
        parameters.update(_RC)
        yield


def percent_axis(axes: Axes, label: str) -> None:
    """A horizontal axis in per cent that shows all of 0 to 100, with a faint grid."""
    axes.set_xlim(0, 100)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel(label)
    axes.grid(axis="x")


def save(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Write ``stem.png`` (200 dpi) and ``stem.pdf``; equal figures give equal files."""
    paths = [folder / f"{stem}.png", folder / f"{stem}.pdf"]
    with style():
        figure.savefig(paths[0], bbox_inches="tight", pad_inches=0.04)
        figure.savefig(paths[1], bbox_inches="tight", pad_inches=0.04, metadata={"CreationDate": None})
    return paths
