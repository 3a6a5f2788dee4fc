"""Paired comparisons of quality evaluations on the same images."""

from collections.abc import Sequence

import torch

from lustral.evaluation import Key, compare, read_records
from lustral.evaluation.dependence import dependences
from lustral.evaluation.quality import ADVERSARIAL, CLEAN, PURIFIED, QualityRecord
from lustral.reporting.runs import Run
from lustral.reporting.tables import Column, Table

_COMPARED = (("distance", 2), ("ssim", 3))
"""The measures that are compared, and their decimals."""
_NOTE = (
    "Second minus first [95 % interval], paired bootstrap over the n common images: the feature distance (less is "
    "nearer) and SSIM (more is nearer) of purified images to the clean ones. In parentheses: the interval contains 0."
)


def quality_comparisons(runs: Sequence[Run]) -> Table:
    """Every run against the first, on the images that both purified. A run whose clean or adversarial images are others
    is left out, with a sentence."""
    columns = [Column("Second"), Column("First"), Column("n", numeric=True)]
    columns += [
        Column(f"purified {kind}", heading, numeric=True)
        for heading in ("feature distance", "SSIM")
        for kind in (CLEAN, ADVERSARIAL)
    ]
    rows, notes = [], []
    first = _records(runs[0])
    for run in runs[1:]:
        second = _records(run)
        keys = sorted(first.keys() & second.keys())
        obstacle = _obstacle(runs[0], run, [(first[key], second[key]) for key in keys])
        if obstacle:
            notes.append(f"{run.name} is not compared with {runs[0].name}: {obstacle}.")
            continue
        one, other = [first[key] for key in keys], [second[key] for key in keys]
        clusters = [*dependences(one), *dependences(other)]  # type: ignore[arg-type]
        cells = []
        for name, digits in _COMPARED:
            for kind in (CLEAN, ADVERSARIAL):
                value = f"{name} {PURIFIED[kind]}"
                found = compare([r.values[value] for r in one], [r.values[value] for r in other], clusters=clusters)
                text = f"{found.difference:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
                cells.append(text if found.low > 0 or found.high < 0 else f"({text})")
        rows.append([run.name, runs[0].name, str(len(keys)), *cells])
    title = "Paired comparisons of image quality"
    return Table("quality_pairs", title, columns, rows, [*notes, *([_NOTE] if rows else [])])


def _records(run: Run) -> dict[Key, QualityRecord]:
    """The records of the run's card that have not failed; empty if only the card was kept."""
    replicates = range(run.card.get("replicates", 1))
    keys = [(replicate, index) for replicate in replicates for index in run.card["indices"]]
    found = read_records(run.folder / "records", keys, QualityRecord)
    return {key: record for key, record in found.items() if not record.failed}


def _obstacle(reference: Run, run: Run, pairs: Sequence[tuple[QualityRecord, QualityRecord]]) -> str | None:
    """Why the two runs cannot be compared; None if they can."""
    if reference.card["data"] != run.card["data"]:
        return "the data differ"
    if reference.card["defence"]["classifier"] != run.card["defence"]["classifier"]:
        return "the classifiers differ, whose features are compared"
    if not pairs:
        return "they have no image in common, or no records"
    if not all(torch.equal(one.image, other.image) for one, other in pairs):
        return "the adversarial images differ (an attack that looks at the purifier makes others for each)"
    return None
