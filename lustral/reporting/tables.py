"""What a report's tables say, apart from how a format writes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lustral.evaluation import Rate
from lustral.evaluation.intervals import Comparison
from lustral.evaluation.levels import KINDS
from lustral.reporting.gaps import frontier_gaps
from lustral.reporting.paired import paired_comparisons
from lustral.reporting.runs import Card, Run, aimed_rule
from lustral.reporting.words import (
    attack_in_short,
    classifier_in_short,
    data_in_short,
    defence_in_short,
    threat_in_short,
)

MAIN_RULES = ("expected", "majority")
"""Rules of the main table, beside those aimed at."""
TRANSFERRED = "\N{DAGGER}"
"""Marks a robust accuracy under another rule than the attack aimed at."""
AUDITS = {
    "attack": "the attack",
    "house": "the house's attack",
    "double_steps": "2 x steps",
    "random_directions": "random directions",
    "square": "Square",
    "bpda": "BPDA",
    "known_noise": "known noise",
    "double_eot": "2 x EOT",
    "double_eps": "2 eps",
    "large_eps": "largest eps",
}
"""The audit's attacks in words, in the order in which they are shown."""


@dataclass(frozen=True)
class Column:
    """A column's heading, and the heading it shares with its neighbours."""

    label: str
    group: str = ""
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """A table of words. ``key`` is its short name; every row has a cell a column; notes go below."""

    key: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def percent(rate: Rate | Mapping[str, Any]) -> str:
    """Such as ``97.6 [95.9, 98.6]``."""
    value, low, high = (rate[k] if isinstance(rate, Mapping) else getattr(rate, k) for k in ("value", "low", "high"))
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def main_rules(cards: Sequence[Card]) -> list[str]:
    """The rules a main table shows: `MAIN_RULES` and those aimed at."""
    return list(dict.fromkeys([*MAIN_RULES, *(aimed_rule(card) for card in cards)]))


def robust_cell(card: Card, rule: str) -> str:
    """The robust accuracy under ``rule``, marked where it is transferred."""
    entry = card["verdicts"][rule]
    return percent(entry["robust"]) + ("" if entry["aimed_at"] else TRANSFERRED)


def cost_cells(card: Card) -> tuple[str, str]:
    """Network calls and seconds an image; a dash where nothing was counted."""
    cost = card["cost"]
    if not cost["calls_per_image"]:
        return "-", "-"
    return f"{cost['network_calls_per_image']:,.0f}", f"{cost['seconds_per_image']:.3g}"


def defence_cost_cells(card: Card) -> tuple[str, str, str]:
    """Network calls, seconds and peak MiB of one purification and classification of one image; dashes where they were
    not measured."""
    cost = card["cost"].get("defence")
    if cost is None:
        return "-", "-", "-"
    calls = f"{cost['network_calls_per_image']:,.1f}".removesuffix(".0")
    return calls, f"{cost['seconds_per_image']:.3g}", f"{cost['peak_memory_mib']:,.1f}"


def status_cells(cards: Mapping[str, Card]) -> tuple[list[str], list[str]]:
    """A word a run, and a numbered footnote with the reason for each run that is suspect."""
    cells, notes = [], []
    for name, card in cards.items():
        if card["status"] == "ok":
            cells.append("ok")
        else:
            notes.append(f"[{len(notes) + 1}] {name} is {card['status']}.")
            cells.append(f"SUSPECT [{len(notes)}]")
    return cells, notes


def all_tables(runs: Sequence[Run]) -> list[Table]:
    """Every table that has something to say about ``runs``."""
    tables = [
        _results(runs),
        _settings(runs),
        _rules(runs),
        _pairs(runs),
        _gaps(runs),
        _levels(runs),
        _audit(runs),
        _costs(runs),
    ]
    return [table for table in tables if table.rows or table.notes]


def _results(runs: Sequence[Run]) -> Table:
    cards = [run.card for run in runs]
    rules = main_rules(cards)
    status, notes = status_cells({run.name: run.card for run in runs})
    columns = [Column("Run"), Column("n", numeric=True), Column("Aimed at")]
    for rule in rules:
        columns += [Column("clean", rule, numeric=True), Column("robust", rule, numeric=True)]
    columns += [Column("Calls", numeric=True), Column("Seconds", numeric=True), Column("Status")]
    rows = []
    for run, word in zip(runs, status, strict=True):
        cells = [run.name, str(run.card["n"]), run.target]
        for rule in rules:
            cells += [percent(run.card["verdicts"][rule]["clean"]), robust_cell(run.card, rule)]
        rows.append([*cells, *cost_cells(run.card), word])
    legend = [
        "Measured here on n images: accuracy in % [95 % interval], clean and under attack with the same "
        "verdict rule. Calls (network, forward and backward) and seconds are an image's."
    ]
    if any(not card["verdicts"][rule]["aimed_at"] for card in cards for rule in rules):
        legend.append(f"{TRANSFERRED} transferred: the attack aimed at another rule.")
    return Table("results", "Results", columns, rows, [*notes, *legend])


def _settings(runs: Sequence[Run]) -> Table:
    columns = [Column(label) for label in ("Run", "Data", "Classifier", "Defence", "Threat", "Attack")]
    rows = [
        [
            run.name,
            data_in_short(run.card["data"]) or "-",
            classifier_in_short(run.card["defence"]),
            defence_in_short(run.card["defence"]),
            threat_in_short(run.card["attack"]["threat"]),
            attack_in_short(run.card["attack"]),
        ]
        for run in runs
    ]
    return Table("settings", "Settings", columns, rows)


def _rules(runs: Sequence[Run]) -> Table:
    columns = [Column("Run"), Column("Rule"), Column("Draws", numeric=True), Column("Attack")]
    columns += [Column("Clean (%)", numeric=True), Column("Robust (%)", numeric=True)]
    rows = [
        [
            run.name,
            rule,
            str(entry["draws"]),
            "aimed at" if entry["aimed_at"] else "transferred",
            percent(entry["clean"]),
            percent(entry["robust"]),
        ]
        for run in runs
        for rule, entry in run.card["verdicts"].items()
    ]
    note = "All rules judge the same stored draws. Intervals: Wilson; for `expected` a bootstrap over images."
    notes = [note, *(_groups_note(run) for run in runs if "groups" in run.card)]
    return Table("rules", "All verdict rules", columns, rows, notes)


def _groups_note(run: Run) -> str:
    card = run.card
    few = f" ({card['too_few_groups']})" if "too_few_groups" in card else ""
    return (
        f"{run.name} judges {card['group_size']} images together: all its intervals are a bootstrap over "
        f"{card['groups']} groups{few}."
    )


def _pairs(runs: Sequence[Run]) -> Table:
    pairs, notes = paired_comparisons(runs)
    columns = [Column("Second"), Column("First"), Column("Rule"), Column("n", numeric=True)]
    for kind in ("robust", "clean"):
        columns += [Column("difference", kind, numeric=True), Column("verdict", kind)]
    rows = [
        [
            pair.run,
            pair.reference,
            pair.rule,
            str(pair.n),
            *_difference(pair.robust),
            *_difference(pair.clean),
        ]
        for pair in pairs
    ]
    if pairs:
        notes.append(
            "Second minus first in points [95 % interval], paired bootstrap over the n common images. Better "
            "or worse needs an interval without 0 and at least 2 points."
        )
    return Table("comparisons", "Paired comparisons", columns, rows, notes)


def _gaps(runs: Sequence[Run]) -> Table:
    columns = [Column("Run"), Column("Fixed levels"), Column("Rule"), Column("n", numeric=True)]
    columns += [Column("difference", "robust", numeric=True), Column("verdict", "robust")]
    gaps = frontier_gaps(runs)
    rows = [
        [gap.run, ", ".join(f"{level:.3g}" for level in gap.levels), gap.rule, str(gap.n), *_difference(gap.robust)]
        for gap in gaps
    ]
    note = (
        "The run's robust accuracy minus the most that the fixed noise levels of the same purifier, attacked alike, "
        "give at the same clean accuracy, or two of them, one drawn at random for each image; of a run that is more "
        "accurate than all of them, minus the most accurate one's. In points [95 % interval], paired bootstrap over "
        "the n common images. The best of several levels is a little lucky: the difference leans against the run, and "
        "what is below is not called worse."
    )
    return Table("fixed_levels", "Against fixed noise levels", columns, rows, [note] if rows else [])


def _difference(difference: Comparison) -> tuple[str, str]:
    points = (100 * value for value in (difference.difference, difference.low, difference.high))
    value, low, high = (f"{point:+.1f}" for point in points)
    return f"{value} [{low}, {high}]", difference.verdict


def _levels(runs: Sequence[Run]) -> Table:
    columns = [Column("Run"), Column("n", numeric=True)]
    columns += [Column(kind, name, numeric=True) for name in ("level", "score") for kind in KINDS]
    rows = []
    for run in runs:
        section = run.card.get("levels")
        if section is not None:
            found = [section[name][kind] if name in section else None for name in ("level", "score") for kind in KINDS]
            rows.append([run.name, str(section["n"]), *("-" if each is None else _mean(each) for each in found)])
    note = (
        "Means over images and verdict draws [95 % interval]: the noise level t of the first round in noising steps "
        "out of 1000, and the norm of the perturbation score that chooses it."
    )
    return Table("levels", "Noise levels", columns, rows, [note] if rows else [])


def _mean(rate: Mapping[str, Any]) -> str:
    return f"{rate['value']:.1f} [{rate['low']:.1f}, {rate['high']:.1f}]"


def _audit(runs: Sequence[Run]) -> Table:
    audited = [run for run in runs if "expected_accuracy" in run.card["audit"]]
    found: set[str] = {name for run in audited for name in run.card["audit"]["expected_accuracy"]}
    names = [*(name for name in AUDITS if name in found), *sorted(found - AUDITS.keys())]
    columns = [Column("Run"), Column("Images", numeric=True)]
    columns += [Column(AUDITS.get(name, name), numeric=True) for name in names]
    columns += [Column("Zero gradients", numeric=True)]
    rows = []
    for run in audited:
        report, rates = run.card["audit"], run.audit_rates()
        cells = [run.name, str(report["num_images"])]
        for name in names:
            value = report["expected_accuracy"].get(name)
            cells.append("-" if value is None else percent(rates[name]) if name in rates else f"{100 * value:.1f}")
        zero = report.get("zero_gradient_share")
        rows.append([*cells, "-" if zero is None else f"{100 * zero:.1f}"])
    notes = [
        "Accuracy in % [95 % interval] (`expected`) on the audited images: the numbers to the right must not "
        "contradict the attack's. Zero gradients in % of those of draws that are still right."
    ]
    return Table("audit", "Audit", columns, rows, notes if rows else [])


def _costs(runs: Sequence[Run]) -> Table:
    columns = [Column("Run")]
    for group in ("defence", "attack and verdicts"):
        columns += [Column(label, group, numeric=True) for label in ("calls", "seconds", "MiB")]
    columns += [Column("Audit (%)", numeric=True)]
    rows = []
    for run in runs:
        calls, seconds = cost_cells(run.card)
        memory = "-" if calls == "-" else f"{run.card['cost']['peak_memory_mib']:,.1f}"
        rows.append([run.name, *defence_cost_cells(run.card), calls, seconds, memory, _audit_share(run.card)])
    note = (
        "Network calls and seconds are an image's: in `defence` of purifying and classifying it once (one draw), in "
        "`attack and verdicts` of all that its record took. MiB: the peak of one call of R rows. Audit: its network "
        "calls, in % of those of attack and verdicts, which do not hold them."
    )
    return Table("cost", "Cost", columns, rows, [note])


def _audit_share(card: Card) -> str:
    audit = card["cost"].get("audit")
    return f"{100 * audit['calls_beside_the_attack']:,.0f}" if audit and audit["images"] else "-"
