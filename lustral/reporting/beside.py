"""Measured numbers with the published ones beside them, never in their place."""

import statistics
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from lustral.evaluation import Rate, bootstrap
from lustral.reporting.runs import Run
from lustral.reporting.tables import Column, Table, percent, status_cells
from lustral.tables import EVIDENCE, Other, PaperTable, Published, Row, fits, read_tables, same_draws

TABLES = Path(__file__).resolve().parents[2] / "configs" / "tables"
_PLUS_MINUS = "\N{PLUS-MINUS SIGN}"

ONE_DRAW = ("one_shot", "expected")
"""Rules whose accuracy is that of a single draw, however many are stored."""

Measured = tuple[Row | Other, Sequence[Run]]
"""A row with its runs, one a seed; none if it was not evaluated, or cannot be."""


@cache
def paper_tables() -> tuple[PaperTable, ...]:
    """Every table of ``configs/tables``."""
    return tuple(read_tables(TABLES))


def published_beside(runs: Sequence[Run]) -> list[Measured]:
    """The rows with published numbers that chose what a run evaluated, each beside that run. Where the rule counts or
    averages several draws (`ONE_DRAW` has the others), they are as many."""
    rows = [row for table in paper_tables() for row in table.rows]
    configs = {run.folder: run.card.get("provenance", {}).get("config", {}) for run in runs}

    def belongs(row: Row, published: Published, config: dict) -> bool:
        return fits(row.choice, config) and (published.verdict in ONE_DRAW or same_draws(row.choice, config))

    return [
        (row, [run])
        for run in runs
        for row in rows
        if row.published is not None and belongs(row, row.published, configs[run.folder])
    ]


def beside(rows: Sequence[Measured], key: str = "published", title: str = "Published numbers") -> Table:
    """The table of ``rows``: what was measured, under the verdict rule of the published number, and that number.

    Several runs of a row are the same evaluation under other seeds: the mean over images and seeds with the 95 %
    interval over images, and the standard deviation over seeds.
    """
    columns = [Column(label) for label in ("Row", "Defence", "Data", "Classifier", "Threat", "Attack", "Rule")]
    columns.append(Column("n", numeric=True))
    columns += [
        Column(kind, group, numeric=True) for group in ("measured", "published") for kind in ("clean", "robust")
    ]
    columns += [Column("Source"), Column("Status")]
    every = {run.name: run.card for _, runs in rows for run in runs}
    status = dict(zip(every, status_cells(every)[0], strict=True))
    lines, notes = [], [*status_cells(every)[1]]
    for row, runs in rows:
        published, told = row.published, "-"
        if published is not None:
            told = f"{published.source} ({published.evidence})"
            if published.note:
                notes.append(f"[{len(notes) + 1}] {published.note[0].upper()}{published.note[1:]}.")
                told += f" [{len(notes)}]"
        rule = _rule(row, runs)
        cells = [_name(row, runs), row.defence, row.dataset, row.classifier, row.threat, row.attack, rule]
        cells.append(str(runs[0].card["n"]) if runs else "-")
        measured, problem = _cells(runs, rule)
        cells += measured
        notes += [f"{row.name}: {problem}"] if problem else []
        cells += ["-" if published is None else _printed(getattr(published, kind)) for kind in ("clean", "robust")]
        lines.append([*cells, told, " ".join(dict.fromkeys(status[run.name] for run in runs)) or "-"])
    if lines:
        notes.append(_legend(rows))
    return Table(key, title, columns, lines, notes if lines else [])


def _name(row: Row | Other, runs: Sequence[Run]) -> str:
    return runs[0].name if len(runs) == 1 else row.name


def _rule(row: Row | Other, runs: Sequence[Run]) -> str:
    """The verdict rule of the published number; where there is none, the one that the attack aimed at."""
    if row.published is not None:
        return row.published.verdict
    return runs[0].target if runs else "-"


def _cells(runs: Sequence[Run], rule: str) -> tuple[list[str], str]:
    """The measured accuracies, or dashes and the reason in a sentence: one row must not cost the others' report."""
    try:
        return [_measured(runs, rule, kind) for kind in ("clean", "robust")], ""
    except ValueError as error:
        return ["-", "-"], str(error)


def _measured(runs: Sequence[Run], rule: str, kind: str) -> str:
    if not runs or rule not in runs[0].card["verdicts"]:
        return "-"
    if len(runs) == 1:
        return percent(runs[0].card["verdicts"][rule][kind])
    rate, deviation = over_seeds(runs, rule, kind)
    return f"{percent(rate)} {_PLUS_MINUS} {100 * deviation:.1f}"


def over_seeds(runs: Sequence[Run], rule: str, kind: str) -> tuple[Rate, float]:
    """The mean accuracy over images and seeds with a 95 % interval over images, and the standard deviation of the
    seeds' accuracies.

    Args:
        runs: the same evaluation under several seeds, with records.
        rule: a verdict rule.
        kind: "clean" or "robust".

    Raises:
        ValueError: if the runs are not of the same images, or there is but one.
    """
    keys = sorted(runs[0].records)
    if len(runs) < 2 or any(sorted(run.records) != keys for run in runs) or not keys:
        raise ValueError(
            f"{' and '.join(run.name for run in runs)} are not of the same images, so their seeds have no mean: give "
            "all of them the same --data.num_test, and keep their records."
        )
    verdicts = np.array([run.verdicts(rule, keys)[("clean", "robust").index(kind)] for run in runs])
    rate = bootstrap(verdicts.mean(0).tolist(), runs[0].dependences(keys))
    return rate, statistics.stdev(verdicts.mean(1).tolist())


def _printed(value: tuple[float, float | None] | None) -> str:
    if value is None:
        return "-"
    return f"{value[0]:.2f}" + ("" if value[1] is None else f" {_PLUS_MINUS} {value[1]:.2f}")


def _legend(rows: Sequence[Measured]) -> str:
    used = {row.published.evidence for row, _ in rows if row.published is not None}
    words = "Measured here on n images: accuracy in % [95 % interval] under the rule named; where there are several "
    words += f"seeds, their mean {_PLUS_MINUS} standard deviation. "
    if used:
        words += f"Published by the sources named, {_PLUS_MINUS} is theirs. Evidence: "
        words += "; ".join(f"{tag}: {meaning}" for tag, meaning in EVIDENCE.items() if tag in used) + "."
    return words.strip()
