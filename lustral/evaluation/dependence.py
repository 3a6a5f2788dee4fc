"""Verdicts that are not independent: on images of one group, and on one image in several replicates."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lustral.evaluation.records import Key, KeyedRecord

GROUPS = 100
"""The smallest number of random groups that gives a valid interval where a verdict depends on the group
(specs/evaluation.md)."""


def dependences(records: Sequence[KeyedRecord]) -> list[list[Key]]:
    """The clusters of ``records`` whose verdicts are not independent, as cluster labels for `bootstrap`: by group, and
    by image where there are several replicates. Empty if images are judged alone."""
    if all(record.group is None for record in records):
        return []
    units = [[record.unit for record in records]]
    return units if _num_replicates(records) == 1 else [*units, [(0, record.index) for record in records]]


def group_section(records: Sequence[KeyedRecord]) -> dict[str, Any]:
    """The card's entries on groups: ``group_size``, ``groups`` (their number), ``replicates`` if there are several, and
    the sentence ``too_few_groups`` if there are fewer than `GROUPS`. Empty if images are judged alone."""
    if all(record.group is None for record in records):
        return {}
    sizes = Counter(record.unit for record in records)
    size, replicates = max(sizes.values()), _num_replicates(records)
    section: dict[str, Any] = {"group_size": size, "groups": len(sizes)}
    if replicates > 1:
        section["replicates"] = replicates
    if len(sizes) < GROUPS:
        each = len(sizes) / replicates
        section["too_few_groups"] = (
            f"only {len(sizes)} random groups of {size} images were judged, and intervals over fewer than {GROUPS} are "
            f"too narrow: raise protocol.replicates to {math.ceil(GROUPS / each)}"
        )
    return section


def _num_replicates(records: Sequence[KeyedRecord]) -> int:
    return len({record.replicate for record in records})


def by_group(values: Sequence[float] | np.ndarray, records: Sequence[KeyedRecord]) -> np.ndarray:
    """The mean of ``values`` (one per record) over each group, which a statistical test may treat as independent. Where
    images are judged alone, the values themselves."""
    if all(record.group is None for record in records):
        return np.asarray(values)
    found: dict[Key, list[float]] = {}
    for value, record in zip(values, records, strict=True):
        found.setdefault(record.unit, []).append(float(value))
    return np.array([sum(each) / len(each) for each in found.values()])
