"""Charts of the victim's penultimate features: joint distributions, and the way that purification takes.

After figures 4 and 6 of Pei et al., "Divide and conquer", CVPR 2025, which use t-SNE. Principal components are used
here: they are linear and fitted on the clean images alone, so distances in the picture are distances in the features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from scipy.stats import gaussian_kde
from torch import Tensor

from lustral.reporting.style import CLEAN, FAINT, INK, PALETTE, ROBUST, WIDTH, small_multiples, style

_FEWEST = 5
"""Points from which a smooth density is drawn."""
_MARKS = 120
"""Places at which a density is computed."""


def joint_distribution(points: Mapping[str, Tensor], reference: str, shares: tuple[float, float]) -> Figure:
    """The features of several kinds of images in a plane, each beside those of the ``reference``, with the density
    along either axis.

    Args:
        points: (n, 2) coordinates of each kind, by its name; the reference among them.
        reference: the kind that the others are compared with.
        shares: of the variance of the reference, along the axes.
    """
    others = [name for name in points if name != reference]
    every = np.concatenate([each.numpy() for each in points.values()])
    low, high = every.min(0), every.max(0)
    margin = 0.06 * np.maximum(high - low, 1e-6)
    limits = np.stack((low - margin, high + margin), 1)
    with style():
        figure = Figure(figsize=(WIDTH, 2.75), layout="constrained")
        parts = figure.subfigures(1, len(others), squeeze=False)[0]
        for number, (part, other) in enumerate(zip(parts, others, strict=True)):
            pair = {reference: (points[reference].numpy(), CLEAN), other: (points[other].numpy(), ROBUST)}
            axes = _joint(part, pair, limits)
            axes.set_xlabel(f"component 1 ({100 * shares[0]:.0f} %)")
            if number == 0:
                axes.set_ylabel(f"component 2 ({100 * shares[1]:.0f} %)")
    return figure


def _joint(part: SubFigure, pair: Mapping[str, tuple[np.ndarray, str]], limits: np.ndarray) -> Axes:
    grid = part.subplots(2, 2, width_ratios=(5, 1), height_ratios=(1, 5), sharex="col", sharey="row")
    axes, top, right = grid[1, 0], grid[0, 0], grid[1, 1]
    grid[0, 1].remove()
    for name, (points, colour) in pair.items():
        axes.scatter(points[:, 0], points[:, 1], s=7, color=colour, alpha=0.45, linewidths=0, label=name)
        for side, values, (low, high) in ((top, points[:, 0], limits[0]), (right, points[:, 1], limits[1])):
            at = np.linspace(low, high, _MARKS)
            if len(values) < _FEWEST or np.ptp(values) == 0:
                continue
            density = gaussian_kde(values)(at)
            filled = {"color": colour, "alpha": 0.15, "linewidth": 0}
            if side is top:
                side.plot(at, density, color=colour, linewidth=1.0)
                side.fill_between(at, density, **filled)
            else:
                side.plot(density, at, color=colour, linewidth=1.0)
                side.fill_betweenx(at, density, **filled)
    for side in (top, right):
        side.axis("off")
    axes.set_xlim(*limits[0])
    axes.set_ylim(*limits[1])
    handles = axes.get_legend_handles_labels()
    part.legend(*handles, loc="outside upper center", ncols=2, handletextpad=0.1, columnspacing=0.8)
    return axes


@dataclass(frozen=True)
class Trajectory:
    """The way of one image in the plane.

    Attributes:
        title: above its axes.
        clean, adversarial: (2,) coordinates of the image without and with perturbation.
        path: (states, 2) those of the noised image and of each state of the reverse process; the last is the purified
            image.
        own, other: (n, 2) the clean images of the true class, and those of the class that the adversarial image is
            taken for.
        names: of these classes.
    """

    title: str
    clean: Tensor
    adversarial: Tensor
    path: Tensor
    own: Tensor
    other: Tensor
    names: tuple[str, str]


def trajectory_figure(trajectories: Sequence[Trajectory]) -> Figure:
    """The ways of several images through the plane, from the adversarial image over the noised one to the purified one,
    on the clean images of the true class and of the class that the attack reached."""
    with style():
        figure, panels = small_multiples([each.title.split("\n")[0] for each in trajectories], 2.0)
        for number, (axes, each) in enumerate(zip(panels, trajectories, strict=True)):
            for points, colour, name in ((each.own, CLEAN, each.names[0]), (each.other, ROBUST, each.names[1])):
                axes.scatter(points[:, 0], points[:, 1], s=6, color=colour, alpha=0.3, linewidths=0)
                if len(points):
                    middle = points.mean(0)
                    axes.annotate(name, (float(middle[0]), float(middle[1])), color=colour, weight="bold", ha="center")
            path = each.path.numpy()
            start = each.adversarial.numpy()
            axes.plot(*np.stack((start, path[0])).T, color=FAINT, linewidth=1.0, linestyle="--", zorder=2)
            axes.plot(*path.T, color=INK, linewidth=0.8, zorder=3)
            axes.scatter(*path[1:-1].T, s=4, color=INK, zorder=3)
            for point, marker, face, label in (
                (each.clean.numpy(), "o", CLEAN, "clean"),
                (start, "X", ROBUST, "adversarial"),
                (path[0], "s", "white", "noised"),
                (path[-1], "*", PALETTE[2], "purified"),
            ):
                size = 90 if marker == "*" else 36
                axes.scatter(
                    *point,
                    s=size,
                    marker=marker,
                    c=face,
                    edgecolors=INK,
                    linewidths=0.7,
                    zorder=4,
                    label=label if number == 0 else None,
                )
            axes.set_title(each.title)
            axes.set_xticks([])
            axes.set_yticks([])
        figure.supxlabel("class of the clean → of the adversarial → of the purified image", fontsize="medium")
        figure.legend(loc="outside upper right", ncols=4, handletextpad=0.2, columnspacing=1.0)
    return figure
