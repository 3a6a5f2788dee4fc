"""Measured beside published: which rows a run is of, under which rule, and what several seeds give."""

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lustral.evaluation import bootstrap
from lustral.reporting import load_runs, report
from lustral.reporting.beside import beside, over_seeds, paper_tables, published_beside
from lustral.reporting.tables import percent
from lustral.tables import Choice, Published, Row, read_table

MakeRun = Callable[..., Path]
CHOICE = Choice(Path("configs/eval/digits_diffpure.yaml"))
PUBLISHED = Published((89.02, 0.21), (46.84, None), "one_shot", "Somebody 2026, Table 2", "seed", "so they say")


def _row(number: int = 1, published: Published | None = PUBLISHED) -> Row:
    words = ("digits", "WRN-10-1", "linf 0.15", "PGD+EOT")
    return Row(number, f"row{number}", "DiffPure", *words, CHOICE, published)


def _cells(rows: list[Any]) -> list[dict[str, str]]:
    table = beside(rows)
    headings = [f"{column.group} {column.label}".strip() for column in table.columns]
    return [dict(zip(headings, cells, strict=True)) for cells in table.rows]


def test_the_measured_number_is_that_of_the_published_rule(make_run: MakeRun) -> None:
    (run,) = load_runs([make_run("mine")])
    (cells,) = _cells([(_row(), [run])])
    verdicts = run.card["verdicts"]
    assert verdicts["one_shot"]["robust"] != verdicts[run.target]["robust"]
    assert (cells["Row"], cells["Rule"], cells["n"]) == ("mine", "one_shot", "120")
    assert cells["measured clean"] == percent(verdicts["one_shot"]["clean"])
    assert cells["measured robust"] == percent(verdicts["one_shot"]["robust"])
    assert (cells["published clean"], cells["published robust"]) == ("89.02 ± 0.21", "46.84")
    assert cells["Source"].startswith("Somebody 2026, Table 2 (seed) [")
    notes = beside([(_row(), [run])]).notes
    assert any(note.endswith("So they say.") for note in notes)
    assert any("seed: read in a paper at hand" in note and "issue:" not in note for note in notes)


def test_a_row_without_a_published_number_has_the_rule_that_was_aimed_at(make_run: MakeRun) -> None:
    (run,) = load_runs([make_run("mine")])
    (cells,) = _cells([(_row(published=None), [run])])
    assert cells["Rule"] == run.target
    assert cells["measured robust"] == percent(run.card["verdicts"][run.target]["robust"])
    assert (cells["published clean"], cells["published robust"], cells["Source"]) == ("-", "-", "-")


def test_a_row_that_was_not_run_has_dashes() -> None:
    cells, bare = _cells([(_row(), []), (_row(2, None), [])])
    assert (cells["Row"], cells["n"], cells["measured clean"], cells["measured robust"]) == ("row1", "-", "-", "-")
    assert (cells["published robust"], cells["Rule"], cells["Status"]) == ("46.84", "one_shot", "-")
    assert (bare["Row"], bare["Rule"], bare["published robust"], bare["Source"]) == ("row2", "-", "-", "-")


def test_a_rule_that_was_not_measured_has_dashes_too(make_run: MakeRun) -> None:
    (run,) = load_runs([make_run("mine")])
    published = Published(None, (50.0, None), "mean_of_logits", "x", "code")
    (cells,) = _cells([(_row(published=published), [run])])
    assert (cells["measured robust"], cells["published clean"]) == ("-", "-")


def test_several_seeds_give_mean_and_deviation(make_run: MakeRun) -> None:
    folders = [make_run("a", robust=0.5), make_run("aa-seed1", robust=0.4, seed=1), make_run("aaa-seed2", seed=2)]
    runs = load_runs(folders)
    (cells,) = _cells([(_row(), runs)])
    assert (cells["Row"], cells["n"]) == ("row1", "120")
    keys = sorted(runs[0].records)
    right = np.array([run.verdicts("one_shot", keys)[1] for run in runs])
    mean = bootstrap(right.mean(0).tolist())
    deviation = statistics.stdev(run.card["verdicts"]["one_shot"]["robust"]["value"] for run in runs)
    assert deviation > 0
    assert cells["measured robust"] == f"{percent(mean)} ± {100 * deviation:.1f}"
    rate, found = over_seeds(runs, "one_shot", "robust")
    assert math.isclose(rate.value, right.mean())
    assert math.isclose(found, deviation)


class _Seed:
    """A run of which only the verdicts count."""

    def __init__(self, name: str, robust: list[float]) -> None:
        self.name, self.robust = name, robust
        self.records = {(0, index): None for index in range(len(robust))}

    def verdicts(self, rule: str, keys: list[Any]) -> tuple[list[float], list[float]]:
        return [1.0] * len(keys), self.robust

    def dependences(self, keys: list[Any]) -> list[Any]:
        return []


def test_over_seeds_in_closed_form() -> None:
    """Accuracies of 1/2, 3/4 and 1/4: mean 1/2, standard deviation 1/4 (of three seeds, n - 1)."""
    seeds: Any = [_Seed("a", [1, 1, 0, 0]), _Seed("b", [1, 1, 1, 0]), _Seed("c", [1, 0, 0, 0])]
    rate, deviation = over_seeds(seeds, "one_shot", "robust")
    assert rate.value == pytest.approx(0.5)
    assert deviation == pytest.approx(0.25)
    assert rate == bootstrap([1, 2 / 3, 1 / 3, 0]), "the interval is over images, whose seeds are averaged"
    same, none = over_seeds([seeds[0], seeds[0]], "one_shot", "robust")
    assert (none, same) == (0.0, bootstrap([1, 1, 0, 0]))


def test_seeds_of_other_images_have_no_mean(make_run: MakeRun) -> None:
    runs = load_runs([make_run("a", indices=range(20)), make_run("b", indices=range(30))])
    other = load_runs([make_run("c", robust=0.5)])
    table = beside([(_row(), runs), (_row(2), other)])
    assert "row1: a and b are not of the same images" in "".join(table.notes), "and the other row is reported"
    assert [line[8] for line in table.rows] == ["-", percent(other[0].card["verdicts"]["one_shot"]["clean"])]
    with pytest.raises(ValueError, match="not of the same images"):
        over_seeds(runs[:1], "one_shot", "robust")


def _chooses(run: Path, choice: Choice) -> Path:
    """The same run, of another evaluation."""
    parts, card = choice.parts(), json.loads((run / "card.json").read_text())
    model = {name: part for name, part in parts.items() if name != "data"}
    card["provenance"] = {"config": {"data": parts["data"], "model": {"init_args": model}}}
    (run / "card.json").write_text(json.dumps(card))
    return run


def test_a_report_finds_the_rows_that_a_run_is_of(make_run: MakeRun) -> None:
    """By what it chose: its folder may have any name. Several tables may have it."""
    table = read_table("configs/tables/lee_kim_cifar10.yaml")
    row = next(row for row in table.rows if row.name == "diffpure_pgd")
    run = _chooses(make_run("any_name"), row.choice)
    text = report([run])
    told = text.split("## Published numbers")[1]
    (line,) = [line for line in told.splitlines() if "46.84" in line and line.startswith("|")]
    for words in ("any_name", "Lee & Kim 2023", "90.07 ± 0.97", "46.84", "WRN-28-10", "linf 8/255", "seed"):
        assert words in line
    assert "seed: read in a paper at hand" in told
    assert "46.84" not in text.split("## Published numbers")[0]
    assert r"90.07 $\pm$ 0.97" in report([run], "latex")
    measured = load_runs([run])
    found = published_beside(measured)
    assert [(each.name, runs) for each, runs in found] == [(row.name, measured)]


@pytest.mark.parametrize(("draws", "num_found"), [(10, 1), (16, 0)])
def test_a_number_of_a_vote_stands_beside_a_vote_of_as_many_draws(
    draws: int, num_found: int, make_run: MakeRun
) -> None:
    table = read_table("configs/tables/lee_kim_cifar10.yaml")
    row = next(row for row in table.rows if row.name == "gnsp_pgd")
    assert row.published is not None
    assert row.published.verdict == "majority"
    run = _chooses(make_run("gnsp"), row.choice)
    card = json.loads((run / "card.json").read_text())
    card["provenance"]["config"]["model"]["init_args"]["protocol"]["verdict_draws"] = draws
    (run / "card.json").write_text(json.dumps(card))
    found = [each for each, _ in published_beside(load_runs([run])) if each.published == row.published]
    assert len(found) == num_found


def test_nothing_is_said_where_nothing_was_published(make_run: MakeRun) -> None:
    assert "ublished" not in report([make_run("digits_diffpure")])
    assert "ublished" not in report([_chooses(make_run("again"), CHOICE)])


def test_the_tables_of_the_package_are_read_once() -> None:
    assert paper_tables() is paper_tables()
    assert {"lee_kim_cifar10", "ssni_cifar10", "diffpure_imagenet"} <= {table.name for table in paper_tables()}
    assert all(0 < value[0] < 100 for table in paper_tables() for row in table.rows for value in _values(row))


def _values(row: Row) -> list[tuple[float, float | None]]:
    published = row.published
    return [] if published is None else [value for value in (published.clean, published.robust) if value is not None]
