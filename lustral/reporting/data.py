"""Cards as data for other programs: CSV, for robustness with one row per run and verdict rule, or JSON."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lustral.ratio import parse_ratio
from lustral.reporting.runs import Run
from lustral.reporting.words import attack_in_short, classifier_in_short, data_in_short, defence_in_short


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV with a header and a line for each of ``rows``; what a row does not have is left empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def robustness_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row per run and rule: measured numbers only, rates in [0, 1] at full precision."""
    return [_row(run, rule) for run in runs for rule in run.card["verdicts"]]


def json_text(runs: Sequence[Run]) -> str:
    """JSON: a list of objects with the "name" and the "card" of a run."""
    return json.dumps([{"name": run.name, "card": run.card} for run in runs], indent=1) + "\n"


def _row(run: Run, rule: str) -> dict[str, Any]:
    card, entry = run.card, run.card["verdicts"][rule]
    rates = {
        kind if end == "value" else f"{kind}_{end}": entry[kind][end]
        for kind in ("clean", "robust")
        for end in ("value", "low", "high")
    }
    threat = card["attack"]["threat"]
    return {
        "run": run.name,
        "rule": rule,
        "aimed_at": int(entry["aimed_at"]),
        "draws": entry["draws"],
        "n": card["n"],
        **rates,
        "network_calls_per_image": card["cost"]["network_calls_per_image"],
        "seconds_per_image": card["cost"]["seconds_per_image"],
        "peak_memory_mib": card["cost"]["peak_memory_mib"],
        "status": card["status"],
        "data": data_in_short(card["data"]),
        "classifier": classifier_in_short(card["defence"]),
        "defence": defence_in_short(card["defence"]),
        "norm": threat["norm"],
        "eps": parse_ratio(threat["eps"]),
        "attack": attack_in_short(card["attack"]),
        "fingerprint": card["fingerprint"],
    }
