"""Panels of images: clean, adversarial and purified ones, and the perturbation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lustral.reporting.style import CLEAN, ROBUST, style

_CELL = 0.82
"""Side of an image in inches."""
_LABELS = 1.0
"""Width of the rows' names, left of the images, in inches."""
_TITLES = 0.17
"""Height of a line of the columns' titles in inches."""
_GAP = 0.06
_MAGNIFICATIONS = (1, 2, 3, 4, 5, 8, 10, 15, 20, 30, 40, 50, 80, 100)


@dataclass(frozen=True)
class Caption:
    """Words in an image's corner, blue if the prediction is ``right`` and vermilion if not."""

    text: str
    right: bool


def panel_figure(
    images: Mapping[str, Tensor],
    titles: Sequence[str],
    captions: Mapping[str, Sequence[Caption]] | None = None,
    changes: bool = True,
) -> Figure:
    """A grid of images, with a row for each kind and a column for each sample.

    If there are rows "clean" and "adversarial", a last row shows their difference: grey where nothing changed,
    magnified as far as the largest change allows.

    Args:
        images: for each row, by its name and from top to bottom, (N, C, H, W) in [0, 1] with C = 1 or 3; values
            outside [0, 1] are clipped.
        titles: N titles above the columns; they may have several lines.
        captions: N captions for each of some rows, by the row's name.
        changes: whether that last row is wanted.

    Raises:
        ValueError: if a row has another number of images than there are titles, or is neither grey nor RGB.
    """
    rows = {name: _for_display(name, row, len(titles)) for name, row in images.items()}
    if changes and "clean" in rows and "adversarial" in rows:
        change = (images["adversarial"].detach() - images["clean"].detach()).float().cpu()
        factor = magnification(float(change.abs().max()))
        rows[f"adversarial\n\N{MINUS SIGN} clean, \N{MULTIPLICATION SIGN}{factor}"] = _for_display(
            "the difference", 0.5 + factor * change, len(titles)
        )
    head = _TITLES * max(1 + title.count("\n") for title in titles)
    width = _LABELS + len(titles) * (_CELL + _GAP)
    height = head + len(rows) * (_CELL + _GAP)
    with style():
        figure = Figure(figsize=(width, height))
        grid = figure.subplots(len(rows), len(titles), squeeze=False)
        figure.subplots_adjust(
            left=_LABELS / width,
            right=1,
            bottom=0,
            top=1 - head / height,
            wspace=_GAP / _CELL,
            hspace=_GAP / _CELL,
        )
        for axes_row, (name, row) in zip(grid, rows.items(), strict=True):
            for axes, image in zip(axes_row, row, strict=True):
                axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
                axes.set_xticks([])
                axes.set_yticks([])
                axes.spines[:].set_visible(False)
            for axes, caption in zip(axes_row, (captions or {}).get(name, ()), strict=False):
                _write(axes, caption)
            axes_row[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=6)
        for axes, title in zip(grid[0], titles, strict=True):
            axes.set_title(title, pad=3)
    return figure


def _write(axes: Axes, caption: Caption) -> None:
    axes.annotate(
        caption.text,
        (0, 0),
        (2.5, 2.5),
        xycoords="axes fraction",
        textcoords="offset points",
        va="bottom",
        fontsize=6,
        color="white",
        bbox={"boxstyle": "square,pad=0.25", "facecolor": CLEAN if caption.right else ROBUST, "linewidth": 0},
    )


def magnification(largest: float) -> int:
    """The largest round factor with which changes up to ``largest`` stay within +-0.5 of grey."""
    fitting = [factor for factor in _MAGNIFICATIONS if factor * largest <= 0.5 + 1e-6]
    return fitting[-1] if fitting and largest > 0 else 1


def _for_display(name: str, row: Tensor, count: int) -> np.ndarray:
    """(N, H, W) grey or (N, H, W, 3) in [0, 1]."""
    if row.ndim != 4 or row.shape[1] not in (1, 3) or len(row) != count or not count:
        raise ValueError(
            f"The images of {name!r} have shape {tuple(row.shape)}; panels take {max(count, 1)} (one a "
            "title) of 1 or 3 channels, (N, C, H, W)."
        )
    shown = row.detach().float().cpu().clamp(0, 1).numpy()
    return shown[:, 0] if row.shape[1] == 1 else shown.transpose(0, 2, 3, 1)
