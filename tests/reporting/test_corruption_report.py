"""What a report says of evaluations under corruptions, alone and among others."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from lustral.corruptions import CommonCorruptions
from lustral.evaluation import CorruptionRecord, Fingerprint, RecordFolder, write_card
from lustral.evaluation.corruption_card import make_corruption_card
from lustral.reporting import load_runs, report, write_report
from lustral.reporting.corruptions import rich_corruptions
from lustral.reporting.heatmap import accuracies, heat_map
from tests.reporting.conftest import decides

CELLS = [("clean", 0), *CommonCorruptions().cells]


def _run(folder: Path, purified: bool = True, lift: float = 0.2) -> Path:
    """Twelve images whose classifier is right up to severity 3, and whose defence is right a little more often."""
    whole = decides(purified)
    told = {"kind": "corruptions", "corruptions": {}, "protocol": {"verdict_draws": 5}}
    found = Fingerprint({name: whole[name] for name in ("defence", "seed", "rows", "data")} | told)
    records = RecordFolder(folder / "records", found)
    bare = torch.tensor([[float(severity <= 3) for _, severity in CELLS]]).expand(5, -1)
    defended = (bare + lift).clamp(0, 1) if purified else bare
    records.append([CorruptionRecord(i, i % 4, i, False, CELLS, defended, bare) for i in range(12)])
    records.close()
    (folder / "cost").mkdir()
    cost = {"images": 12, "seconds": 6.0, "peak_memory": 0, "calls": {"classifier_forward": 12 * 76 * 6}}
    (folder / "cost" / "a.json").write_text(json.dumps(cost))
    write_card(folder, None, make_corruption_card, CorruptionRecord)
    return folder


def test_a_report_of_corruptions_has_both_sides(tmp_path: Path) -> None:
    text = report([_run(tmp_path / "defended"), _run(tmp_path / "plain", purified=False)])
    assert "## Common corruptions" in text
    assert "## Corruptions by severity" in text
    assert "without, corrupted" in text
    assert "60.0 [60.0, 60.0]" in text
    assert "68.0 [68.0, 68.0]" in text
    assert "+8.0 [+8.0, +8.0]" in text
    assert "| gaussian noise" in text
    assert "Robustness" not in text.replace("# Robustness report", "")
    rows = [line for line in text.splitlines() if line.startswith("| plain")]
    assert " -" in rows[0]


def test_corruptions_and_attacks_are_reported_together(make_run: Callable[..., Path], tmp_path: Path) -> None:
    runs = [make_run("digits_diffpure"), _run(tmp_path / "corrupted")]
    text = report(runs)
    assert "## Results" in text
    assert "## Common corruptions" in text
    assert "corrupted" not in text.partition("## Common corruptions")[0]
    rows = list(csv.DictReader(io.StringIO(report(runs, "csv"))))
    own = [row for row in rows if row["run"] == "corrupted"]
    assert len(own) == 5 * 2 * 76
    cell = next(
        row
        for row in own
        if (row["rule"], row["purifier"], row["corruption"], row["severity"]) == ("expected", "with", "fog", "5")
    )
    assert float(cell["accuracy"]) == pytest.approx(0.2)
    assert cell["clean"] == ""
    assert {row["accuracy"] for row in rows if row["run"] == "digits_diffpure"} == {""}
    assert [each["card"].get("kind") for each in json.loads(report(runs, "json"))] == [None, "corruptions"]
    assert "\\begin{table}" in report(runs, "latex")


def test_a_report_of_corruptions_alone_is_written_with_its_heat_map(tmp_path: Path) -> None:
    files = write_report([_run(tmp_path / "run")], tmp_path / "report")
    assert {path.name for path in files} == {
        *("report.md", "report.tex", "report.csv", "report.json"),
        *("corruptions_run.png", "corruptions_run.pdf"),
    }
    assert "corruptions_run.png" in (tmp_path / "report" / "report.md").read_text()


def test_a_heat_map_shows_the_cards_numbers_on_one_scale(tmp_path: Path) -> None:
    (run,) = load_runs([_run(tmp_path / "run")])
    names, severities, values = accuracies(run.card, "defended")
    assert (len(names), names[-1], severities) == (16, "mean", ["1", "2", "3", "4", "5", "mean"])
    assert np.allclose(values, [1, 1, 1, 0.2, 0.2, 0.68])
    figure = heat_map(run.card)
    bare, defended = figure.axes[:2]
    assert [axes.get_images()[0].get_clim() for axes in (bare, defended)] == [(0, 100)] * 2
    assert np.allclose(np.asarray(defended.get_images()[0].get_array()), 100 * values)
    assert [text.get_text() for text in defended.texts[:6]] == ["100", "100", "100", "20", "20", "68"]
    assert "clean: 100.0 %" in bare.get_title()
    (plain,) = load_runs([_run(tmp_path / "plain", purified=False)])
    assert len(heat_map(plain.card).axes) == 2  # the map and its scale


def test_lines_on_the_screen_fit_80_columns(tmp_path: Path) -> None:
    (run,) = load_runs([_run(tmp_path / "run")])
    console = Console(file=io.StringIO(), width=80)
    console.print(rich_corruptions("run", run.card))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for word in ("clean", "gaussian noise", "severity 5", "mean", "n = 12", "better"):
        assert word in text


def test_a_damaged_card_and_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    run = _run(tmp_path / "run")
    card = json.loads((run / "card.json").read_text())
    (run / "card.json").write_text(json.dumps({**card, "accuracy": {}}))
    with pytest.raises(ValueError, match=r"is damaged \(it lacks accuracy\.expected\.defended\.mean\)"):
        report([run])
    (run / "card.json").write_text(json.dumps({**card, "kind": "taste"}))
    with pytest.raises(ValueError, match="a kind of evaluation that is known here, robustness, corruptions"):
        report([run])
