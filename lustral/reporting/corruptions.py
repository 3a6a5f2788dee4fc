"""What is told of evaluations under common corruptions: tables, rows of data, and lines on the screen."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from lustral.evaluation.corruption_card import SIDES
from lustral.reporting.runs import Card, Run
from lustral.reporting.tables import Column, Table, cost_cells, percent, status_cells
from lustral.reporting.words import classifier_in_short, data_in_short, defence_in_short, method_in_short

RULE = "expected"
"""The verdict rule of tables and figures; the card has all of them."""
SIDE_WORDS = {"defended": "with", "bare": "without"}


def sides_of(card: Card) -> tuple[str, ...]:
    """Both sides; the classifier alone where there is no purifier."""
    return ("bare",) if card["defence"]["purifier"]["class"] == "Identity" else SIDES


def corruption_tables(runs: Sequence[Run]) -> list[Table]:
    """Tables of runs under corruptions: a summary, accuracy by severity, and by type."""
    return [_summary(runs), _by_severity(runs), _by_type(runs)]


def _summary(runs: Sequence[Run]) -> Table:
    status, notes = status_cells({run.name: run.card for run in runs})
    columns = [Column(label) for label in ("Run", "Data", "Classifier", "Defence")] + [Column("n", numeric=True)]
    columns += [Column(label, group, numeric=True) for group in ("clean", "corrupted") for label in ("without", "with")]
    columns += [Column("Difference", numeric=True), Column("Verdict"), Column("Calls", numeric=True)]
    columns += [Column("Seconds", numeric=True), Column("Status")]
    rows = []
    for run, word in zip(runs, status, strict=True):
        card, found = run.card, run.card["accuracy"][RULE]
        cells = [run.name, data_in_short(card["data"]) or "-", classifier_in_short(card["defence"])]
        cells += [defence_in_short(card["defence"]), str(card["n"])]
        for what in ("clean", "mean"):
            for side in ("bare", "defended"):
                told = side in sides_of(card) and what in found[side]
                cells.append(percent(found[side][what]) if told else "-")
        rows.append([*cells, *difference_cells(card), *cost_cells(card), word])
    legend = (
        "Accuracy in % [95 % interval] without the purifier (the classifier alone) and with it, on the same images, by "
        "the rule `expected`; corrupted: the mean over types and severities, its interval by a bootstrap over images. "
        "Difference: with minus without in points, paired by image; better or worse needs an interval without 0 and at "
        "least 2 points. Calls and seconds are an image's, under all of its corruptions and on both sides."
    )
    return Table("corruptions", "Common corruptions", columns, rows, [*notes, legend])


def difference_cells(card: Card) -> tuple[str, str]:
    """With minus without purifier, and its verdict; dashes where there is no purifier."""
    if "defended" not in sides_of(card):
        return "-", "-"
    found = card["accuracy"][RULE]["difference"]
    value, low, high = (f"{100 * found[end]:+.1f}" for end in ("difference", "low", "high"))
    return f"{value} [{low}, {high}]", found["verdict"]


def _by_severity(runs: Sequence[Run]) -> Table:
    severities = sorted({s for run in runs for s in run.card["accuracy"][RULE]["bare"]["by_severity"]})
    columns = [Column("Run"), Column("Purifier"), *(Column(f"severity {s}", numeric=True) for s in severities)]
    rows = []
    for run in runs:
        for side in reversed(sides_of(run.card)):
            found = run.card["accuracy"][RULE][side]["by_severity"]
            cells = [percent(found[s]) if s in found else "-" for s in severities]
            rows.append([run.name, SIDE_WORDS[side], *cells])
    note = "Accuracy in % [95 % interval], the mean over the types of corruption (`expected`)."
    return Table("corruption_severities", "Corruptions by severity", columns, rows, [note])


def _by_type(runs: Sequence[Run]) -> Table:
    names = list(dict.fromkeys(name for run in runs for name in run.card["accuracy"][RULE]["bare"]["by_type"]))
    columns, told = [Column("Corruption")], []
    for run in runs:
        for side in reversed(sides_of(run.card)):
            columns.append(Column(SIDE_WORDS[side], run.name, numeric=True))
            told.append(run.card["accuracy"][RULE][side]["by_type"])
    rows = [
        [in_words(name), *(f"{100 * found[name]['value']:.1f}" if name in found else "-" for found in told)]
        for name in names
    ]
    note = "Accuracy in % with and without the purifier, the mean over severities (`expected`); intervals: in the card."
    return Table("corruption_types", "Corruptions by type", columns, rows, [note])


def in_words(name: str) -> str:
    """Such as ``gaussian noise``."""
    return name.replace("_", " ")


def corruption_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each run, rule, side, type and severity: rates in [0, 1] at full precision."""
    return [
        {
            "run": run.name,
            "rule": rule,
            "draws": found["draws"],
            "n": run.card["n"],
            "purifier": SIDE_WORDS[side],
            "corruption": name,
            "severity": int(severity),
            "accuracy": rate["value"],
            "accuracy_low": rate["low"],
            "accuracy_high": rate["high"],
            "status": run.card["status"],
            "data": data_in_short(run.card["data"]),
            "classifier": classifier_in_short(run.card["defence"]),
            "defence": defence_in_short(run.card["defence"]),
            "fingerprint": run.card["fingerprint"],
        }
        for run in runs
        for rule, found in run.card["accuracy"].items()
        for side in sides_of(run.card)
        for name, severity, rate in _cells(found[side])
    ]


def _cells(side: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    clean = [("clean", "0", side["clean"])] if "clean" in side else []
    return clean + [(name, s, rate) for name, rates in side["cells"].items() for s, rate in rates.items()]


def card_numbers(card: Card) -> dict[str, float]:
    """The numbers of a card that TensorBoard shows."""
    found = card["accuracy"][RULE]
    numbers = {}
    for side in sides_of(card):
        words = f"card/{SIDE_WORDS[side]}_purifier"
        numbers |= {f"{words}/{what}": found[side][what]["value"] for what in ("clean", "mean") if what in found[side]}
        numbers |= {f"{words}/severity_{s}": rate["value"] for s, rate in found[side]["by_severity"].items()}
    return numbers


def show_corruptions(run: Path, card: Card, figures: Sequence[str] = ()) -> None:
    """Print the summary at the end of an evaluation: its numbers, the paths of its files, and the next command."""
    Console(file=sys.stdout, highlight=False).print(rich_corruptions(run.name, card))
    print(f"{run}: {', '.join(['card.json', 'records', *figures])}")
    print(f"python cli.py report {run}    tables and figures; name several runs to compare them")
    print(f"tensorboard --logdir {run}", flush=True)


def rich_corruptions(name: str, card: Card) -> RichTable:
    """Accuracy by type, by severity and in the mean, narrow enough for 80 columns."""
    found, sides = card["accuracy"][RULE], tuple(reversed(sides_of(card)))
    draws = f"{found['draws']} draw{'' if found['draws'] == 1 else 's'}"
    caption = [f"Measured here on n = {card['n']} images, {draws} each: accuracy in % [95 % interval] ({RULE})."]
    if len(sides) == 2:
        points, verdict = difference_cells(card)
        caption.append(f"With minus without the purifier, paired by image: {points} points, {verdict}.")
    if card["status"] != "ok":
        caption.insert(0, f"This run is {card['status']}.")
    table = RichTable(
        title=f"{name}: {method_in_short(card['defence'])} under common corruptions",
        caption="\n".join(caption),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        min_width=72,  # for what stands above and below
    )
    table.add_column("images")
    for side in sides:
        table.add_column("no purifier" if side == "bare" else "purified", justify="right", no_wrap=True)

    def add(label: str, rates: Sequence[Mapping[str, Any]], style: str = "", last: bool = False) -> None:
        table.add_row(label, *(percent(rate) for rate in rates), style=style, end_section=last)

    if "clean" in found["bare"]:
        add("clean", [found[side]["clean"] for side in sides], last=True)
    for key in found["bare"]["by_type"]:
        last = key == list(found["bare"]["by_type"])[-1]
        add(in_words(key), [found[side]["by_type"][key] for side in sides], last=last)
    for key in found["bare"]["by_severity"]:
        add(f"severity {key}", [found[side]["by_severity"][key] for side in sides])
    add("mean", [found[side]["mean"] for side in sides], style="bold")
    return table
