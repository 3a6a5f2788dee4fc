"""The papers' own numbers, kept as data in ``published/*.json`` and shown beside measured ones."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

EVIDENCE = {
    "seed": "read in a paper at hand",
    "issue": "confirmed in a public thread on the authors' code",
    "rec-H": "recalled from the paper with high confidence; verify before quoting",
    "rec-M": "recalled from the paper with medium confidence; verify before quoting",
    "rec-L": "recalled from the paper with low confidence; verify before quoting",
}
"""What the tags mean."""


@dataclass(frozen=True)
class Published:
    """One line of a paper's table. Accuracies are in per cent, as printed.

    Attributes:
        recipe: the evaluation recipe that it belongs beside.
        clean: value and the paper's own +- (None: not printed); None if the paper gives no clean accuracy.
        robust: the same under attack.
        source: who published it.
        evidence: how it was obtained, a key of `EVIDENCE`.
        note: what else a reader has to know; may be empty.
    """

    recipe: str
    defence: str
    dataset: str
    classifier: str
    threat: str
    attack: str
    clean: tuple[float, float | None] | None
    robust: tuple[float, float | None] | None
    source: str
    evidence: str
    note: str = ""


@cache
def all_published() -> tuple[Published, ...]:
    """Every published number that is stored, in the order of the files."""
    files = sorted((Path(__file__).parent / "published").glob("*.json"))
    return tuple(_published(row) for file in files for row in json.loads(file.read_text(encoding="utf-8")))


def published_beside(recipes: Iterable[str]) -> list[Published]:
    """The published numbers that belong beside runs of ``recipes``."""
    wanted = set(recipes)
    return [row for row in all_published() if row.recipe in wanted]


def _published(row: dict) -> Published:
    pair = {key: None if row[key] is None else (row[key][0], row[key][1]) for key in ("clean", "robust")}
    return Published(**{**row, **pair})
