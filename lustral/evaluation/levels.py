"""Noise levels and perturbation scores of sample-specific purifiers: from the verdict draws to records and card."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from lustral.evaluation.dependence import dependences
from lustral.evaluation.intervals import Clusters, Rate, bootstrap
from lustral.evaluation.records import Record

FOLLOWED = ("levels", "score")
"""The trace entries of a purifier that records keep, if it offers them."""
QUANTITIES = {"level": "levels", "score": "score"}
"""The quantities' names in records, and in the trace."""
KINDS = ("clean", "adversarial")


def level_statistics(clean: Mapping[str, Tensor], adversarial: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The statistics that records keep of the traces of the verdict draws, whose entries are (draws, B) or (draws, B,
    rounds). Empty for a purifier that has neither levels nor scores.

    Returns:
        (B,) each: "level_clean", "level_adversarial" (of the first round), "score_clean" and "score_adversarial", the
        means over the draws; and "level_clean_spread" and so on, the standard deviations over the draws.
    """
    found = {}
    for kind, trace in zip(KINDS, (clean, adversarial), strict=True):
        for name, traced in QUANTITIES.items():
            if traced in trace:
                values = trace[traced] if trace[traced].ndim == 2 else trace[traced][..., 0]
                found[f"{name}_{kind}"] = values.mean(0)
                found[f"{name}_{kind}_spread"] = values.std(0, correction=0)
    return found


def level_means(records: Sequence[Record]) -> dict[str, Any]:
    """The card's section "levels": means over records with 95 % intervals, such as
    ``["score"]["adversarial"]["value"]``, and "n", the number of records. Empty if no record has levels.

    Failed images have no levels, and neither have records of older versions.
    """
    records = [record for record in records if "level_clean" in record.statistics]
    having, clusters = [record.statistics for record in records], dependences(records)
    if not having:
        return {}
    section: dict[str, Any] = {"n": len(having)}
    for name in QUANTITIES:
        if f"{name}_clean" in having[0]:
            section[name] = {kind: asdict(mean([s[f"{name}_{kind}"] for s in having], clusters)) for kind in KINDS}
    return {"levels": section}


def mean(values: Sequence[float], clusters: Clusters = ()) -> Rate:
    """The mean of any quantity with a 95 % bootstrap interval over images, or over ``clusters`` of them."""
    if min(values) == max(values):  # not a rate: Wilson's interval for all 0 or all 1 does not apply
        return Rate(values[0], values[0], values[0])
    return bootstrap(values, clusters)
