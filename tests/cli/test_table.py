"""`cli.py table` through the front door: shipped tables are listed, seeds evaluated, and a stopped table goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from lustral.tables import jobs
from tests.cli.evaluations import FASTEST

TABLES = sorted(Path("configs/tables").glob("*.yaml"))
CPU = ("--trainer.accelerator", "cpu")


def _table(folder: Path, recipe: str) -> Path:
    """A table of one row, whose folder is called "one"."""
    path = folder / "small.yaml"
    row = {
        "name": "one",
        "defence": "as in the recipe",
        "dataset": "digits",
        "classifier": "WRN-10-1",
        "threat": "linf 0.15",
        "attack": "PGD",
        "published": {"clean": 97.5, "robust": "46.84 ± 1.44", "verdict": "one_shot", "evidence": "code"},
    }
    content = {"title": "Small", "source": "Somebody", "recipe": str(Path("configs/eval").resolve() / recipe)}
    path.write_text(yaml.safe_dump({**content, "rows": [row]}, allow_unicode=True), encoding="utf-8")
    return path


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.stem)
def test_a_shipped_table_is_listed_with_the_commands_of_its_rows(
    table: Path, cli: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(table.read_text())
    assert cli("table", table, "--list", "--output", tmp_path / "runs") == 0
    out = capsys.readouterr().out
    assert out.startswith(content["title"])
    assert out.count("   python cli.py test -c configs/eval/") == len(content["rows"])
    for name in (row["name"] for row in content["rows"]):
        assert f"--trainer.default_root_dir {tmp_path}/runs/{name}\n" in out
    for file, command in (content.get("needs") or {}).items():
        assert Path(file).is_file() or f"first: python cli.py {command}    (makes {file})" in out
    assert not (tmp_path / "runs").exists()


def test_two_seeds_are_evaluated_and_their_mean_stands_beside_the_published_number(
    cli: Callable[..., int],
    tmp_path: Path,
    digit_weights: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def in_this_process(front_door: Path, words: Sequence[str]) -> int:
        assert front_door == Path("cli.py").resolve()
        return cli(*words)

    monkeypatch.setattr(jobs, "call", in_this_process)
    small = ("--model.classifier.weights", digit_weights["classifier"], "--model.purifier.num_steps", "2")
    small += ("--model.purifier.denoiser.weights", digit_weights["denoiser"], *FASTEST, *CPU, "--data.num_test", "4")
    small += ("--model.attack.num_steps", "1", "--model.attack.eot", "2", "--model.attack.selection_draws", "1")
    words = ("table", _table(tmp_path, "digits_diffpure.yaml"), "--seeds", "0,1", "--output", tmp_path / "runs")
    assert cli(*words, "--", *small) == 0
    out = capsys.readouterr().out
    seeds = [json.loads((tmp_path / "runs" / name / "card.json").read_text()) for name in ("one", "one-seed1")]
    assert [(card["seed"], card["n"]) for card in seeds] == [(0, 4), (1, 4)]
    line = next(line for line in out.splitlines() if line.startswith("| one"))
    for kind in ("clean", "robust"):
        mean = sum(card["verdicts"]["one_shot"][kind]["value"] for card in seeds) / 2
        assert f"{100 * mean:.1f} [" in line
    assert line.count("±") == 3
    assert "46.84 ± 1.44" in line
    assert (tmp_path / "runs" / "report" / "report.md").is_file()
    assert cli(*words, "--report", "--", *small) == 0
    assert capsys.readouterr().out.endswith(out[out.index("# Robustness report") :])


def test_a_table_that_is_stopped_goes_on_where_it_was(
    cli: Callable[..., int], tmp_path: Path, digit_weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM reaches the row's process, which ends with 143 as on its own, and so does the table."""
    words = ["table", str(_table(tmp_path, "digits_undefended.yaml")), "--output", str(tmp_path / "runs"), "--"]
    words += ["--model.classifier.weights", str(digit_weights["classifier"]), *FASTEST, *CPU]
    words += ["--data.num_test", "3", "--data.batch_size", "1"]
    words += ["--model.attack", "configs/attack/pgd20.yaml", "--model.attack.num_steps", "150"]
    records, environment = tmp_path / "runs" / "one" / "records", os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "cli.py", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as run:
        while not any(shard.stat().st_size for shard in records.glob("*.jsonl")) and run.poll() is None:
            time.sleep(0.02)
        assert run.poll() is None, run.communicate()[1]
        told_at = time.monotonic()
        os.kill(run.pid, signal.SIGTERM)
        _, told = run.communicate()
    assert run.returncode == 143
    assert time.monotonic() - told_at < 30
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert "the same command goes on: python cli.py test -c" in errors[0]
    assert errors[1:] == ["error: The table was stopped; the same command goes on where it was."]
    assert not (tmp_path / "runs" / "one" / "card.json").exists()
    before = {path: path.read_bytes() for path in records.glob("*.jsonl")}
    monkeypatch.setattr(jobs, "call", lambda front_door, row: cli(*row))  # what went on above was a process
    assert cli(*words) == 0
    assert json.loads((tmp_path / "runs" / "one" / "card.json").read_text())["n"] == 3
    assert all(path.read_bytes() == content for path, content in before.items())


def test_what_is_no_table_is_told_in_a_sentence(
    cli: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "whole").mkdir()
    path, whole = _table(tmp_path, "nowhere.yaml"), _table(tmp_path / "whole", "digits.yaml")
    for words, told in (
        (("table", tmp_path / "nowhere.yaml"), "There is no table"),
        (("table", path), "and there is no such file."),
        (("table",), "the following arguments are required: FILE"),
        (("table", whole, "--", "--trainer.default_root_dir", "x"), "give --output"),
    ):
        assert cli(*words) == 1
        (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert told in error
