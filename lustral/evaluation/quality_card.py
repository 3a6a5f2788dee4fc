"""The card of a quality evaluation: means over images with 95 % intervals."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from lustral.evaluation.card import SCHEMA
from lustral.evaluation.cost import total_cost
from lustral.evaluation.dependence import dependences, group_section
from lustral.evaluation.intervals import Clusters, Rate, bootstrap, wilson
from lustral.evaluation.levels import mean
from lustral.evaluation.quality import ALIGNMENT, CLOSER, KINDS, MEASURES, PAIRS, RIGHT, QualityRecord

KIND = "quality"
"""What the card's "kind" says."""


def share(values: Sequence[float], clusters: Clusters = ()) -> Rate:
    """The mean of shares in [0, 1]: with Wilson's interval if each is 0 or 1 and they are independent."""
    binary = not clusters and set(values) <= {0.0, 1.0}
    return wilson(sum(values), len(values)) if binary else bootstrap(values, clusters)


def make_quality_card(
    records: Sequence[QualityRecord],
    fingerprint: dict[str, Any],
    costs: Iterable[dict[str, Any]] = (),
    provenance: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The card of ``records``, as plain data.

    Failed samples have no values; they are counted, and make the card `suspect`.

    Args:
        records: at least one.
        fingerprint: the content of ``fingerprint.json``.
        costs: the cost files of every process and start.
        provenance: when, on which machine and from which code, config and weights the run was made.

    Raises:
        ValueError: if there is no record, or all have failed.
    """
    healthy = [record for record in records if not record.failed]
    if not healthy:
        raise ValueError(
            f"{len(records)} images were purified and all of them failed (NaN or Inf), so there is nothing to put on a "
            "card: choose another purifier or attack."
            if records
            else "There is no record yet, so there is nothing to put on a card: run `cli.py test` first."
        )
    decides, clusters = fingerprint["decides"], dependences(healthy)  # type: ignore[arg-type]
    names = [name for name in MEASURES if f"{name} {next(iter(PAIRS))}" in healthy[0].values]

    def values(name: str) -> list[float]:
        return [record.values[name] for record in healthy]

    doubts = [f"the weights of {', '.join(decides['untrained'])} are random"] if decides.get("untrained") else []
    if failed := len(records) - len(healthy):
        doubts.append(f"{failed} samples failed (NaN or Inf)")
    adversarial = decides["adversarial"]
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "status": f"suspect: {'; '.join(doubts)}" if doubts else "ok",
        "n": len({record.index for record in records}),
        "indices": list(dict.fromkeys(record.index for record in records)),
        **group_section(records),  # type: ignore[arg-type]
        "quality": {pair: {name: asdict(mean(values(f"{name} {pair}"), clusters)) for name in names} for pair in PAIRS},
        "right": {kind: asdict(share(values(f"{RIGHT} {kind}"), clusters)) for kind in KINDS},
        CLOSER: asdict(share(values(CLOSER), clusters)),
        ALIGNMENT: asdict(mean(values(ALIGNMENT), clusters)),
        "cost": total_cost(costs),
        "failed_samples": failed,
        "attack": {**adversarial["attack"], "threat": adversarial["threat"]},
        "adversarial": {name: value for name, value in adversarial.items() if name not in ("attack", "threat")},
        "defence": decides["defence"],
        "protocol": decides["protocol"],
        "lpips": decides["quality"]["lpips"],
        "data": decides.get("data", {}),
        "seed": decides["seed"],
        "rows": decides["rows"],
        "fingerprint": fingerprint["sha256"],
        "provenance": provenance or {},
    }
