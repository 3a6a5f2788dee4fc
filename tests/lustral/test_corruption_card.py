"""The card of an evaluation under corruptions, from records whose rates are known."""

import json

import numpy as np
import pytest
import torch

from lustral.evaluation import CorruptionRecord, Fingerprint, compare, make_corruption_card
from lustral.evaluation.corrupted import CLEAN
from lustral.evaluation.corruption_card import mean_right, verdict_table
from lustral.evaluation.intervals import bootstrap, wilson

CELLS = [CLEAN, ("snow", 1), ("snow", 5), ("fog", 1), ("fog", 5)]


def record(index: int, defended: list[float], bare: list[float], **options: object) -> CorruptionRecord:
    rules = torch.ones(5, 1)
    given = {"position": index, "failed": False, "cells": CELLS, **options}
    return CorruptionRecord(
        index, index % 3, defended=rules * torch.tensor(defended), bare=rules * torch.tensor(bare), **given
    )  # type: ignore[arg-type]


RECORDS = [
    record(4, [1.0, 1.0, 0.5, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0, 0.0]),
    record(7, [1.0, 0.5, 0.5, 1.0, 0.5], [1.0, 1.0, 1.0, 0.0, 0.0]),
    record(9, [0.0, 1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0, 0.0]),
]


def fingerprint(**options: object) -> dict:
    decides = {"defence": {}, "corruptions": {}, "protocol": {"verdict_draws": 2}, "seed": 0, "rows": 8, **options}
    found = Fingerprint(decides)
    return {"decides": found.decides, "sha256": found.sha256}


def test_rates_are_means_with_their_intervals() -> None:
    card = make_corruption_card(RECORDS, fingerprint())
    assert (card["kind"], card["status"], card["n"], card["indices"]) == ("corruptions", "ok", 3, [4, 7, 9])
    found = card["accuracy"]["expected"]
    defended = [0.625, 0.625, 0.5]
    mean = bootstrap(defended)
    assert found["defended"]["mean"] == {"value": mean.value, "low": mean.low, "high": mean.high}
    assert found["defended"]["clean"]["value"] == pytest.approx(2 / 3)
    assert found["defended"]["by_type"]["fog"]["value"] == pytest.approx(3.5 / 6)
    assert found["defended"]["by_severity"]["5"]["value"] == pytest.approx(1.5 / 6)
    assert found["defended"]["cells"]["snow"]["1"]["value"] == pytest.approx(2.5 / 3)
    assert list(found["bare"]["by_type"]) == ["snow", "fog"]
    difference = compare([0.25, 0.5, 0.5], defended)
    assert found["difference"]["difference"] == difference.difference
    assert found["difference"]["verdict"] == difference.verdict
    one_shot = card["accuracy"]["one_shot"]["bare"]["cells"]["fog"]["1"]
    assert one_shot["low"] == wilson(1, 3).low
    assert mean_right(RECORDS[0]) == 0.625


def test_a_record_is_read_as_it_was_written() -> None:
    line = RECORDS[1].to_json()
    again = CorruptionRecord.from_json(line)
    assert again.to_json() == line
    assert torch.equal(again.defended, RECORDS[1].defended)
    assert make_corruption_card([again], fingerprint()) == make_corruption_card([RECORDS[1]], fingerprint())
    assert json.loads(line)["index"] == 7


def test_an_images_cells_may_come_from_several_records() -> None:
    """As from data that are corrupted on disk."""
    parts = [
        record(
            100 * number + r.index,
            [float(r.defended[0, number])],
            [float(r.bare[0, number])],
            position=r.index,
            cells=[cell],
        )
        for r in RECORDS
        for number, cell in enumerate(CELLS)
    ]
    cells, tables = verdict_table(parts)
    whole_cells, whole = verdict_table(RECORDS)
    assert cells == whole_cells == CELLS
    assert all(np.array_equal(tables[side], whole[side]) for side in whole)
    card, one = make_corruption_card(parts, fingerprint()), make_corruption_card(RECORDS, fingerprint())
    assert card["accuracy"] == one["accuracy"]
    assert card["n"] == 3
    with pytest.raises(ValueError, match="fewer corruptions than others"):
        make_corruption_card(parts[:-1], fingerprint())


def test_doubts_are_in_the_status() -> None:
    broken = record(11, [0.0] * 5, [0.0] * 5, failed=True)
    card = make_corruption_card([*RECORDS, broken], fingerprint(untrained=["classifier"]))
    assert card["status"] == "suspect: the weights of classifier are random; 1 samples met NaN or Inf"
    assert card["failed_samples"] == 1
    with pytest.raises(ValueError, match="There is no record yet"):
        make_corruption_card([], fingerprint())


def test_replicates_of_groups_widen_the_interval() -> None:
    grouped = [
        record(index, [1.0] + [float(index < 4)] * 4, [1.0] * 5, replicate=replicate, group=index // 4 * 4)
        for replicate in range(2)
        for index in range(8)
    ]
    card = make_corruption_card(grouped, fingerprint())
    assert (card["n"], card["group_size"], card["replicates"]) == (8, 4, 2)
    assert card["status"].startswith("undecided: only 4 random groups")
    found = card["accuracy"]["expected"]["defended"]["mean"]
    assert (found["value"], found["low"], found["high"]) == (0.5, 0.0, 1.0)
