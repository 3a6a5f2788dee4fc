"""The card of an evaluation under common corruptions: accuracy by type and severity, with and without purifier."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from lustral.corruptions import TYPES
from lustral.evaluation.card import SCHEMA, rate
from lustral.evaluation.corrupted import CLEAN, Cell, CorruptionRecord
from lustral.evaluation.cost import total_cost
from lustral.evaluation.dependence import dependences, group_section
from lustral.evaluation.intervals import Clusters, bootstrap, compare
from lustral.evaluation.verdicts import VerdictRule, all_rules

KIND = "corruptions"
SIDES = ("defended", "bare")
"""The defence, and its classifier alone."""


def verdict_table(records: Sequence[CorruptionRecord]) -> tuple[list[Cell], dict[str, np.ndarray]]:
    """The cells of ``records``, and for each of `SIDES` the verdicts (rules, images, cells).

    Images are in the order in which ``records`` first have them; an image that a data set holds under several
    corruptions has its cells from several records.

    Raises:
        ValueError: if an image lacks a cell that another one has.
    """
    rows = list(dict.fromkeys((record.replicate, record.position) for record in records))
    found = dict.fromkeys((cell[0], cell[1]) for record in records for cell in record.cells)
    cells = sorted(found, key=lambda cell: (cell != CLEAN, TYPES.index(cell[0]) if cell[0] in TYPES else 0, cell[1]))
    row_of, cell_of = ({key: number for number, key in enumerate(keys)} for keys in (rows, cells))
    tables = {side: np.full((len(records[0].defended), len(rows), len(cells)), np.nan) for side in SIDES}
    for record in records:
        columns = [cell_of[cell[0], cell[1]] for cell in record.cells]
        for side, table in tables.items():
            table[:, row_of[record.replicate, record.position], columns] = getattr(record, side).numpy()
    if any(np.isnan(table).any() for table in tables.values()):
        raise ValueError(
            "Some images were judged under fewer corruptions than others, so no table can be made of these records: "
            "run the same command again to its end."
        )
    return cells, tables


def make_corruption_card(
    records: Sequence[CorruptionRecord],
    fingerprint: dict[str, Any],
    costs: Iterable[dict[str, Any]] = (),
    provenance: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The card of ``records``, as plain data (see `make_card` for the arguments).

    ``accuracy`` has for each verdict rule and each of `SIDES` rates with 95 % intervals: "clean" (where it was judged),
    "mean" over types and severities, "by_severity", "by_type", and "cells" by type and severity; and "difference", the
    defence's mean minus the classifier's, paired by image.

    Raises:
        ValueError: if there is no record.
    """
    if not records:
        raise ValueError("There is no record yet, so there is nothing to put on a card: run `cli.py test` first.")
    decides = fingerprint["decides"]
    cells, tables = verdict_table(records)
    rules = all_rules(decides["protocol"]["verdict_draws"])
    clusters = dependences(records) if tables["bare"].shape[1] == len(records) else []
    accuracy = {}
    for number, rule in enumerate(rules):
        sides = {side: _side(tables[side][number], cells, rule, clusters) for side in SIDES}
        means = {side: _mean(tables[side][number], cells) for side in SIDES}
        difference = compare(means["bare"], means["defended"], clusters=clusters)
        accuracy[rule.name] = {**sides, "difference": asdict(difference), "draws": rule.num_draws}
    failed = sum(record.failed for record in records)
    doubts = [f"{failed} samples met NaN or Inf"] if failed else []
    if decides.get("untrained"):
        doubts.insert(0, f"the weights of {', '.join(decides['untrained'])} are random")
    groups = group_section(records)
    status = f"undecided: {groups['too_few_groups']}" if "too_few_groups" in groups else "ok"
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "status": f"suspect: {'; '.join(doubts)}" if doubts else status,
        "n": len({record.position for record in records}),
        "indices": list(dict.fromkeys(record.index for record in records)),
        **groups,
        "failed_samples": failed,
        "accuracy": accuracy,
        "cost": total_cost(costs),
        "corruptions": decides["corruptions"],
        "defence": decides["defence"],
        "protocol": decides["protocol"],
        "data": decides.get("data", {}),
        "seed": decides["seed"],
        "rows": decides["rows"],
        "fingerprint": fingerprint["sha256"],
        "provenance": provenance or {},
    }


def _side(values: np.ndarray, cells: Sequence[Cell], rule: VerdictRule, clusters: Clusters) -> dict[str, Any]:
    """The rates of one rule on one side, from verdicts (images, cells)."""
    corrupted = [cell for cell in cells if cell != CLEAN]

    def over(chosen: Sequence[Cell]) -> dict[str, Any]:
        columns = [cells.index(cell) for cell in chosen]
        if len(columns) == 1:
            return asdict(rate(values[:, columns[0]].tolist(), rule, clusters))
        return asdict(bootstrap(values[:, columns].mean(1).tolist(), clusters))

    types, severities = (list(dict.fromkeys(cell[i] for cell in corrupted)) for i in (0, 1))
    return {
        **({"clean": over([CLEAN])} if CLEAN in cells else {}),
        "mean": over(corrupted),
        "by_severity": {str(s): over([cell for cell in corrupted if cell[1] == s]) for s in severities},
        "by_type": {str(name): over([cell for cell in corrupted if cell[0] == name]) for name in types},
        "cells": {str(name): {str(cell[1]): over([cell]) for cell in corrupted if cell[0] == name} for name in types},
    }


def _mean(values: np.ndarray, cells: Sequence[Cell]) -> list[float]:
    """(images,) means over the corrupted cells."""
    return values[:, [i for i, cell in enumerate(cells) if cell != CLEAN]].mean(1).tolist()


def mean_right(record: CorruptionRecord) -> float:
    """How right the defence is on a record's corrupted images: the mean over cells of the rule `expected`."""
    rule = next(number for number, each in enumerate(all_rules(1)) if each.name == "expected")
    corrupted = [i for i, cell in enumerate(record.cells) if (cell[0], cell[1]) != CLEAN]
    return float(record.defended[rule, corrupted].mean())
