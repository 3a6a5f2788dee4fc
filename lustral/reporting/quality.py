"""What a report says of quality evaluations: tables, a chart of feature distances, rows of a CSV file, the screen."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from lustral.evaluation.quality import ADVERSARIAL, ALIGNMENT, CLEAN, CLOSER, MEASURES, PAIRS, PURIFIED, REMOVED
from lustral.ratio import parse_ratio
from lustral.reporting.quality_pairs import quality_comparisons
from lustral.reporting.runs import Card, Run
from lustral.reporting.style import CLEAN as BLUE
from lustral.reporting.style import INK, WIDTH, style
from lustral.reporting.style import ROBUST as VERMILION
from lustral.reporting.tables import Column, Table, cost_cells, percent, status_cells
from lustral.reporting.words import (
    attack_in_short,
    classifier_in_short,
    data_in_short,
    defence_in_short,
    threat_in_short,
)

HEADINGS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS", "distance": "feature distance"}
_DIGITS = {"psnr": 1, "ssim": 3, "lpips": 3, "distance": 2}
AGAINST = {
    ADVERSARIAL: "adversarial : clean",
    PURIFIED[CLEAN]: "purified clean : clean",
    PURIFIED[ADVERSARIAL]: "purified adversarial : clean",
    REMOVED: "purified adversarial : adversarial",
}
"""The pairs in words."""
_NOTE = (
    "Means over n images [95 % interval] between the two images of a pair. Feature distance: Euclidean, of the "
    "victim's penultimate features. Known: how often the victim is right about the first image of the pair, in %."
)
_CLOSER_NOTE = (
    "Closer: how often purification brings the features of an adversarial image closer to those of the clean one, in "
    "%. Alignment: the cosine of what the attack added and purification removed, 1 if that is the perturbation alone."
)


def number(rate: Mapping[str, float], digits: int) -> str:
    """Such as ``21.3 [20.1, 22.4]``."""
    return f"{rate['value']:.{digits}f} [{rate['low']:.{digits}f}, {rate['high']:.{digits}f}]"


def quality_tables(runs: Sequence[Run]) -> list[Table]:
    """Every table about quality evaluations ``runs``."""
    measures = _measures([run.card for run in runs])
    columns = [Column("Run"), Column("n", numeric=True), Column("Pair")]
    columns += [Column(HEADINGS[name], numeric=True) for name in measures] + [Column("Known (%)", numeric=True)]
    rows = [
        [run.name, str(run.card["n"]), AGAINST[pair], *_cells(run.card, pair, measures)]
        for run in runs
        for pair in PAIRS
    ]
    status, notes = status_cells({run.name: run.card for run in runs})
    settings = [Column(label) for label in ("Run", "Data", "Classifier", "Defence", "Threat", "Attack")]
    settings += [Column(label, numeric=True) for label in ("Closer (%)", "Alignment", "Calls", "Seconds")]
    described = [
        [
            run.name,
            data_in_short(run.card["data"]) or "-",
            classifier_in_short(run.card["defence"]),
            defence_in_short(run.card["defence"]),
            threat_in_short(run.card["attack"]["threat"]),
            attack_in_short(run.card["attack"]),
            percent(run.card[CLOSER]),
            number(run.card[ALIGNMENT], 2),
            *cost_cells(run.card),
            word,
        ]
        for run, word in zip(runs, status, strict=True)
    ]
    notes.append(_CLOSER_NOTE)
    tables = [
        Table("quality", "Image quality", columns, rows, [_NOTE]),
        quality_comparisons(runs),
        Table("quality_settings", "Settings of image quality", [*settings, Column("Status")], described, notes),
    ]
    return [table for table in tables if table.rows or table.notes]


def quality_figures(runs: Sequence[Run]) -> dict[str, tuple[Figure, str]]:
    """Figures with captions by file stem."""
    caption = (
        "Distance to the clean image in the victim's penultimate features, means with 95 % intervals, of purified "
        "clean (left) and purified adversarial images (right); open diamonds: of the adversarial images before it."
    )
    return {"feature_distance": (distance_chart({run.name: run.card for run in runs}), caption)}


def distance_chart(cards: Mapping[str, Card]) -> Figure:
    """The feature distances of each run, after figure 9 of Pei et al. (CVPR 2025).

    Args:
        cards: the cards of quality evaluations by the run's name.
    """
    with style():
        figure = Figure(figsize=(WIDTH, 0.9 + 0.3 * len(cards)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, sharex=True)
        _intervals(left, cards, PURIFIED[CLEAN], BLUE)
        _intervals(right, cards, PURIFIED[ADVERSARIAL], VERMILION)
        before = [card["quality"][ADVERSARIAL]["distance"]["value"] for card in cards.values()]
        right.scatter(before, range(len(cards)), s=22, marker="D", c="white", edgecolors=INK, linewidths=0.8, zorder=3)
        left.set_title("purified clean images")
        right.set_title("purified adversarial images")
        left.set_yticks(range(len(cards)), list(cards))
        left.set_ylim(len(cards) - 0.5, -0.5)
        left.set_xlim(left=0)
        figure.supxlabel("feature distance to the clean image", fontsize="medium")
    return figure


def _intervals(axes: Axes, cards: Mapping[str, Card], pair: str, colour: str) -> None:
    rates = [card["quality"][pair]["distance"] for card in cards.values()]
    values = [rate["value"] for rate in rates]
    ends = [[r["value"] - r["low"] for r in rates], [r["high"] - r["value"] for r in rates]]
    axes.errorbar(values, range(len(values)), xerr=ends, fmt="o", color=colour, markersize=4, elinewidth=1, capsize=2)
    axes.grid(axis="x")


def quality_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row per run and pair: means at full precision, shares in [0, 1]."""
    return [_row(run, pair) for run in runs for pair in PAIRS]


def _row(run: Run, pair: str) -> dict[str, Any]:
    card, threat = run.card, run.card["attack"]["threat"]
    known = card["right"][PAIRS[pair][0]]
    measured = {**card["quality"][pair], "known": known, CLOSER: card[CLOSER], ALIGNMENT: card[ALIGNMENT]}
    numbers = {
        name if end == "value" else f"{name}_{end}": rate[end]
        for name, rate in measured.items()
        for end in ("value", "low", "high")
    }
    return {
        "run": run.name,
        "pair": pair,
        "n": card["n"],
        **numbers,
        "status": card["status"],
        "data": data_in_short(card["data"]),
        "classifier": classifier_in_short(card["defence"]),
        "defence": defence_in_short(card["defence"]),
        "norm": threat["norm"],
        "eps": parse_ratio(threat["eps"]),
        "attack": attack_in_short(card["attack"]),
        "fingerprint": card["fingerprint"],
    }


def show_quality(run: Path, card: Card, figures: Sequence[str] = ()) -> None:
    """Print the summary at the end of a quality evaluation: its numbers, the paths of its files, the next command.

    Args:
        run: the run folder.
        card: the content of its ``card.json``.
        figures: the names of its image files.
    """
    measures = _measures([card])
    note = (
        "Means [95 % interval]; distance: of the victim's penultimate features. known: how often the victim is right "
        "about the first image, in %."
    )
    if "lpips" not in measures:
        note += " LPIPS was not measured: --model.lpips alex, where its weights are in torch's cache."
    table = RichTable(
        title=f"Image quality of {run.name}, n = {card['n']}",
        caption=Text(note),
        caption_justify="left",
        padding=(0, 1, 0, 0),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("pair", no_wrap=True)
    for name in measures:
        table.add_column({"distance": "distance"}.get(name, HEADINGS[name]), justify="right", no_wrap=True)
    table.add_column("known", justify="right", no_wrap=True)
    for pair in PAIRS:
        cells = [cell.replace(" [", "\n[") for cell in _cells(card, pair, measures)]
        table.add_row(AGAINST[pair].replace(" : ", "\n: "), *cells)
    Console(file=sys.stdout, highlight=False).print(table)
    attack = card["attack"]
    print(f"defence: {defence_in_short(card['defence'])}")
    print(f"adversarial images: {threat_in_short(attack['threat'])}, {attack_in_short(attack)}")
    print(f"features brought closer by purification: {percent(card[CLOSER])} % of adversarial images")
    print(f"alignment of what was added and removed: {number(card[ALIGNMENT], 2)}; status: {card['status']}")
    print(f"{run}: {', '.join(['card.json', 'records', *figures])}")
    print(f"python cli.py report {run}    tables and figures; name several runs to compare them")
    print(f"tensorboard --logdir {run}", flush=True)


def _measures(cards: Sequence[Card]) -> list[str]:
    """The measures that any of the cards has."""
    return [name for name in MEASURES if any(name in card["quality"][ADVERSARIAL] for card in cards)]


def _cells(card: Card, pair: str, measures: Sequence[str]) -> list[str]:
    """A cell a measure, and how often the victim knows the first image; a dash where nothing was measured."""
    found = card["quality"][pair]
    cells = [number(found[name], _DIGITS[name]) if name in found else "-" for name in measures]
    return [*cells, "-" if pair == REMOVED else percent(card["right"][PAIRS[pair][0]])]
