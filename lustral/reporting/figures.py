"""A report's charts: accuracies with intervals, the audit, and how random the verdicts are."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lustral.evaluation import Rate
from lustral.reporting.runs import Card, aimed_rule
from lustral.reporting.style import CLEAN, INK, ROBUST, WIDTH, percent_axis, small_multiples, style
from lustral.reporting.tables import AUDITS


def accuracy_bars(cards: Mapping[str, Card]) -> Figure:
    """Clean and robust accuracy of each run under the rule that its attack aimed at, with 95 % intervals.

    Args:
        cards: the runs' cards by name. The bars of runs whose status is not `ok` are hatched and labelled SUSPECT.
    """
    rules = {name: aimed_rule(card) for name, card in cards.items()}
    differ = len(set(rules.values())) > 1
    with style():
        figure = Figure(figsize=(WIDTH, 0.75 + 0.62 * len(cards)), layout="constrained")
        axes = figure.add_subplot()
        for row, (name, card) in enumerate(cards.items()):
            suspect = card["status"] != "ok"
            for kind, colour, offset in (("clean", CLEAN, -0.19), ("robust", ROBUST, 0.19)):
                label = {"clean": "clean", "robust": "under attack"}[kind] if row == 0 else None
                rate = Rate(**card["verdicts"][rules[name]][kind])
                _bar(axes, row + offset, rate, colour, label, hatched=suspect)
        rule = "" if differ else f" (rule: {next(iter(rules.values()))})"
        percent_axis(axes, f"accuracy in %, 95 % interval{rule}")
        axes.set_yticks(range(len(cards)), [_bar_label(name, card, differ) for name, card in cards.items()])
        axes.set_ylim(len(cards) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.margins(x=0)
        figure.legend(loc="outside upper right", ncols=2, handlelength=1.2)
    return figure


def _bar(axes: Axes, position: float, rate: Rate, colour: str, label: str | None, hatched: bool) -> None:
    value, low, high = (100 * end for end in (rate.value, rate.low, rate.high))
    axes.barh(
        position,
        value,
        height=0.34,
        color="white" if hatched else colour,
        edgecolor=colour,
        hatch="////" if hatched else None,
        linewidth=0.6,
        label=label,
    )
    axes.errorbar(value, position, xerr=[[value - low], [high - value]], color=INK, capsize=2, linewidth=0.8)
    axes.annotate(
        f"{value:.1f}",
        (high, position),
        (4, 0),
        textcoords="offset points",
        va="center",
        annotation_clip=False,
    )


def _bar_label(name: str, card: Card, with_rule: bool) -> str:
    words = [f"n = {card['n']}"]
    words += [aimed_rule(card)] if with_rule else []
    words += ["SUSPECT"] if card["status"] != "ok" else []
    return f"{name}\n{', '.join(words)}"


def budget_curve(audits: Mapping[str, Mapping[str, Rate]], num_images: Mapping[str, int]) -> Figure:
    """Each run's accuracy under the audit's attacks; the dotted line is the accuracy under the run's own attack.

    Args:
        audits: for each run, accuracies by the audit's names ("attack", "random_directions", "double_eps", ...).
        num_images: for each run, the number of audited images.
    """
    found = {name for rates in audits.values() for name in rates}
    names = [*(name for name in AUDITS if name in found), *sorted(found - AUDITS.keys())]
    with style():
        figure, panels = small_multiples(list(audits), 0.55 + 0.2 * len(names))
        for axes, (run, rates) in zip(panels, audits.items(), strict=True):
            if "attack" in rates:
                axes.axvline(100 * rates["attack"].value, color=ROBUST, linewidth=0.8, linestyle=":")
            for row, name in enumerate(names):
                if name in rates:
                    _dot(axes, row, rates[name], ROBUST if name == "attack" else INK)
            percent_axis(axes, "accuracy in %")
            axes.set_title(f"{run}\nn = {num_images[run]}")
            axes.set_yticks(range(len(names)), [AUDITS.get(name, name) for name in names])
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
    return figure


def _dot(axes: Axes, row: int, rate: Rate, colour: str) -> None:
    value, low, high = (100 * end for end in (rate.value, rate.low, rate.high))
    axes.errorbar(
        value,
        row,
        xerr=[[value - low], [high - value]],
        fmt="o",
        markersize=4,
        color=colour,
        linewidth=0.9,
        clip_on=False,
        zorder=3,
    )


def draws_histogram(shares: Mapping[str, tuple[Sequence[float], Sequence[float]]], num_draws: int) -> Figure:
    """Histograms of the share of each image's draws that are right, clean and under attack.

    A deterministic defence has images at 0 and 1 only; the verdict on an image in between depends on the noise.

    Args:
        shares: for each run, the shares of right draws of the clean and of the adversarial images, in [0, 1].
        num_draws: verdict draws per image.
    """
    positions = np.arange(num_draws + 1)
    with style():
        figure, panels = small_multiples(list(shares), 1.75)
        for number, (axes, (run, (clean, robust))) in enumerate(zip(panels, shares.items(), strict=True)):
            for values, colour, label, side in (
                (clean, CLEAN, "clean", -1),
                (robust, ROBUST, "under attack", 1),
            ):
                right = np.rint(np.asarray(values) * num_draws).astype(int)
                heights = 100 * np.bincount(right, minlength=num_draws + 1) / len(right)
                axes.bar(positions + 0.21 * side, heights, 0.42, color=colour, label=label if number == 0 else None)
            axes.set_title(f"{run}\nn = {len(clean)}")
            axes.set_xlabel(f"right draws of {num_draws}")
            axes.set_xticks(np.unique(np.linspace(0, num_draws, min(5, num_draws + 1)).round()))
            axes.set_ylim(0, 100)
            axes.grid(axis="y")
        figure.supylabel("images in %", fontsize="medium")
        figure.legend(loc="outside upper right", ncols=2, handlelength=1.2)
    return figure
