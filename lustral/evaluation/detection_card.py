"""The card of an evaluation of detectors."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from lustral.evaluation.card import SCHEMA
from lustral.evaluation.cost import total_cost
from lustral.evaluation.detection import KIND, DetectionRecord
from lustral.evaluation.group_detection import told_apart
from lustral.evaluation.intervals import wilson
from lustral.evaluation.roc import smallest_detectable

CALIBRATED = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""False-alarm rates of the calibration curve."""


def make_detection_card(
    records: Sequence[DetectionRecord],
    fingerprint: dict[str, Any],
    costs: Iterable[dict[str, Any]] = (),
    provenance: dict[str, Any] | None = None,
    groups: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The card of ``records``, as plain data (see `make_card` for the other arguments).

    ``detectors`` has for each detector of single images, by budget, AUROC and detection rates at 1 and 5 % false alarms
    of "adversarial" and, as a control, of "random" images; "eps_below_95", the budget under which the AUROC falls below
    0.95 (None: under none of those measured), and "calibration": nominal and actual false alarms.

    Args:
        groups: what `lustral.evaluation.group_detection.group_section` says of each detector of groups.

    Raises:
        ValueError: if there are fewer than two records.
    """
    if len(records) < 2:
        raise ValueError(f"There are {len(records)} records, and detection takes at least two images: test more.")
    decides = fingerprint["decides"]
    budgets: list[float] = decides["budgets"]
    failed, n = sum(record.failed for record in records), len(records)
    right = np.array([record.right for record in records])
    doubts = [f"the weights of {', '.join(decides['untrained'])} are random"] if decides.get("untrained") else []
    doubts += [f"{failed} samples met NaN or Inf"] if failed else []
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "status": f"suspect: {'; '.join(doubts)}" if doubts else "ok",
        "n": n,
        "indices": [record.index for record in records],
        "failed_samples": failed,
        "accuracy": {
            "clean": asdict(wilson(int(right[:, 0].sum()), n)),
            "adversarial": {f"{b:g}": asdict(wilson(int(right[:, 1 + i].sum()), n)) for i, b in enumerate(budgets)},
        },
        "detectors": {name: _of_detector(records, name, budgets) for name in records[0].scores},
        "groups": dict(groups or {}),
        "cost": total_cost(costs),
        "budgets": budgets,
        "attack": decides["attack"],
        "defence": decides["defence"],
        "references": decides["references"],
        "protocol": decides["protocol"],
        "data": decides.get("data", {}),
        "seed": decides["seed"],
        "rows": decides["rows"],
        "fingerprint": fingerprint["sha256"],
        "provenance": provenance or {},
    }


def _of_detector(records: Sequence[DetectionRecord], name: str, budgets: Sequence[float]) -> dict[str, Any]:
    scores = np.array([record.scores[name] for record in records])  # (n, 1 + 2 budgets)
    clean, count = scores[:, 0], len(budgets)
    by_budget = {
        f"{budget:g}": {
            "adversarial": told_apart(clean, scores[:, 1 + i]),
            "random": told_apart(clean, scores[:, 1 + count + i]),
        }
        for i, budget in enumerate(budgets)
    }
    areas = [entry["adversarial"]["auroc"]["value"] for entry in by_budget.values()]
    least = smallest_detectable(list(budgets), areas)
    return {
        "by_budget": by_budget,
        "eps_below_95": "above all measured" if least == float("inf") else least,
        "calibration": _calibration(clean),
    }


def _calibration(clean: np.ndarray) -> dict[str, Any]:
    """False alarms on every second clean image of thresholds that the others calibrate, for each nominal rate."""
    known, fresh = np.sort(clean[::2]), clean[1::2]
    found = {}
    for rate in CALIBRATED:
        rank = int(np.ceil((1.0 - rate) * (len(known) + 1) - 1e-9))
        if rank <= len(known) and len(fresh):
            found[f"{rate:g}"] = asdict(wilson(int((fresh > known[rank - 1]).sum()), len(fresh)))
    return found
