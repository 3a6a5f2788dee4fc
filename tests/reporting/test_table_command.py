"""`cli.py table`: what it lists, runs, leaves alone, reports and refuses; a script stands in the place of the rows."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lustral.reporting import table_command
from lustral.reporting.table_command import run_command

# Notes its words, copies a finished run into the folder, and ends with the code that the folder's name has in `codes`.
SCRIPT = """import json, pathlib, shutil, sys
here, words = pathlib.Path(__file__).parent, sys.argv[1:]
with open(here / "called.txt", "a") as file:
    file.write(json.dumps(words) + "\\n")
if words[0] == "make":
    pathlib.Path(words[1]).write_text("")
    sys.exit(0)
if words[0] == "fail":
    sys.exit(1)
folder = pathlib.Path(words[words.index("--trainer.default_root_dir") + 1])
code = json.loads((here / "codes.json").read_text()).get(folder.name, 0)
if code in (0, 3):
    shutil.copytree(here / "runs" / (folder.name if (here / "runs" / folder.name).exists() else "any"), folder)
sys.exit(code)
"""
MakeRun = Callable[..., Path]


class Bench:
    """A table, a script in the place of `cli.py`, and the runs that it finds."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys, self.output = folder, capsys, folder / "output"
        self.script, self.table = folder / "script.py", folder / "small.yaml"
        self.script.write_text(SCRIPT)
        self.codes({})
        self.write()

    def write(self, **more: Any) -> None:
        evals = Path("configs").resolve() / "eval"
        words = {"dataset": "digits", "classifier": "WRN-10-1", "threat": "linf 0.15", "attack": "PGD"}
        rows = [
            {
                "name": name,
                "defence": f"defence {name}",
                "published": {"robust": 40 + k, "verdict": "one_shot", "evidence": "seed"},
            }
            for k, name in enumerate(("first", "second", "third"))
        ]
        content = {"title": "Small", "source": "Somebody", "recipe": str(evals / "digits_diffpure.yaml"), "all": words}
        self.table.write_text(yaml.safe_dump({**content, "rows": rows, **more}))

    def codes(self, codes: dict[str, int]) -> None:
        (self.folder / "codes.json").write_text(json.dumps(codes))

    @property
    def called(self) -> list[list[str]]:
        """The words of each call so far."""
        path = self.folder / "called.txt"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def __call__(self, *words: str) -> tuple[int, str, str]:
        self.capsys.readouterr()
        code = run_command([str(self.table), "--output", str(self.output), *words], self.script)
        told = self.capsys.readouterr()
        return code, told.out, told.err


@pytest.fixture
def bench(
    tmp_path: Path,
    make_run: MakeRun,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Bench:
    """Without the report's figures, which take long."""
    monkeypatch.setattr(table_command, "write_report", lambda folders, output: [output / "report.md"])
    (tmp_path / "runs").mkdir()
    make_run("any", indices=range(20)).rename(tmp_path / "runs" / "any")
    make_run("second-seed1", indices=range(20), seed=1).rename(tmp_path / "runs" / "second-seed1")
    return Bench(tmp_path, capsys)


def _lines(out: str) -> list[str]:
    """The rows of the table that is printed."""
    return [line for line in out.splitlines() if line.startswith("| ") and not line.startswith(("| Row", "| --"))]


def test_the_list_has_each_row_with_its_command(bench: Bench) -> None:
    code, out, _ = bench("--list", "--", "--data.num_test", "5")
    assert (code, bench.called) == (0, [])
    assert out.startswith("Small\nSomebody\n")
    assert "1  first (-): defence first, WRN-10-1, linf 0.15, PGD" in out
    assert out.count("python cli.py test -c ") == 3
    assert f"--data.num_test 5 --trainer.default_root_dir {bench.output}/second\n" in out
    assert not bench.output.exists()
    _, out, _ = bench("--list", "--rows", "3,1", "--seeds", "0,4")
    commands = [line.rpartition("/")[2] for line in out.splitlines() if "python cli.py" in line]
    assert commands == ["first", "first-seed4", "third", "third-seed4"]


def test_what_cannot_be_run_is_listed_and_reported_beside(bench: Bench) -> None:
    published = {"clean": 95, "robust": 9, "verdict": "one_shot", "evidence": "seed"}
    bench.write(others=[{"name": "fourth", "defence": "PixelDefend", "published": published}])
    _, out, _ = bench("--list")
    assert "-  fourth (published only): PixelDefend, WRN-10-1, linf 0.15, PGD\n" in out
    assert out.count("python cli.py test -c ") == 3
    _, out, _ = bench("--rows", "1")
    assert len(bench.called) == 1
    assert "| fourth" in _lines(out)[-1]
    assert "9.00" in _lines(out)[-1]


def test_the_rows_asked_for_are_run_once_and_reported(bench: Bench) -> None:
    code, out, err = bench("--rows", "1-2", "--", "--data.num_test", "5")
    assert code == 0
    assert [words[-1] for words in bench.called] == [f"{bench.output}/first", f"{bench.output}/second"]
    assert all("--data.num_test" in words for words in bench.called)
    assert "== row 2 (2 of 2): python cli.py test" in err
    first, second, third = _lines(out)
    assert "| first" in first
    assert "40.00" in first
    assert " 20 " in second
    assert third.count(" - ") >= 3, "it was not run, and its published number stands there all the same"
    assert "42.00" in third
    assert err.endswith(f"{bench.output}/report/report.md\n")
    _, out, err = bench("--rows", "2,3", "--", "--data.num_test", "5")
    assert len(bench.called) == 3, "what ended is not run again"
    assert "== row 3 (1 of 1)" in err
    assert "2  second (done)" in out
    _, out, _ = bench("--report")
    assert len(bench.called) == 3
    assert len(_lines(out)) == 3


def test_another_command_is_another_evaluation(bench: Bench) -> None:
    bench("--rows", "1")
    _, out, _ = bench("--list", "--rows", "1", "--", "--model.rows", "3")
    assert "1  first (20 recorded)" in out


def test_seeds_give_mean_and_deviation(bench: Bench) -> None:
    code, out, _ = bench("--rows", "2", "--seeds", "0,1")
    assert code == 0
    assert [words[-4:-2] for words in bench.called][1] == ["--model.seed", "1"]
    assert "--model.seed" not in bench.called[0]
    line = next(line for line in _lines(out) if "| second" in line)
    assert line.count("±") == 2, "the clean and the robust number"


def test_a_run_with_other_settings_than_the_row_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options after ``--`` may change what a row is, and a file may have changed since its row was run."""
    monkeypatch.setattr(table_command, "fits", lambda choice, config: True)
    _, out, _ = bench("--rows", "1-2")
    assert "other settings" not in out
    monkeypatch.setattr(table_command, "fits", lambda choice, config: False)
    _, out, _ = bench("--report")
    (note,) = [line for line in out.splitlines() if "other settings" in line]
    assert note.startswith("first, second: measured with other settings than the table chooses (")


def test_what_is_needed_is_made_first_and_once(bench: Bench) -> None:
    needed = bench.folder / "reference.json"
    bench.write(needs={str(needed): f"make {needed}"})
    _, out, _ = bench("--list")
    assert f"first: python cli.py make {needed}    (makes {needed})" in out
    assert bench("--rows", "1")[0] == 0
    assert bench("--rows", "2")[0] == 0
    assert [words[0] for words in bench.called] == ["make", "test", "test"]
    needed.unlink()
    assert bench("--rows", "1")[0] == 0
    assert len(bench.called) == 3, "nothing is left to do, so nothing is needed"


def test_what_cannot_be_made_ends_in_a_sentence(bench: Bench) -> None:
    bench.write(needs={"nowhere.json": "fail now"})
    with pytest.raises(ValueError, match=r"`python cli.py fail now` did not make nowhere.json \(exit code 1\)"):
        bench()
    assert [words[0] for words in bench.called] == ["fail"]


@pytest.mark.parametrize(
    ("codes", "expected"), [({}, 0), ({"second": 3}, 3), ({"second": 1}, 1), ({"first": 3, "third": 1}, 1)]
)
def test_exit_codes(codes: dict[str, int], expected: int, bench: Bench) -> None:
    """A row that failed does not keep the others from being run, and is tried again."""
    bench.codes(codes)
    code, out, err = bench()
    assert (code, len(bench.called), len(_lines(out))) == (expected, 3, 3)
    failed = [name for name, value in codes.items() if value == 1]
    told = [line.partition(" (If the row was changed")[0] for line in err.splitlines() if line.startswith("error: ")]
    assert told == [f"error: {bench.output / name} failed with exit code 1; its reason is above." for name in failed]
    bench.codes({})
    assert bench()[0] == 0
    assert len(bench.called) == 3 + len(failed)


@pytest.mark.parametrize("code", [130, 143])
def test_a_row_that_was_told_to_stop_stops_the_table(code: int, bench: Bench) -> None:
    bench.codes({"second": code})
    with pytest.raises(SystemExit) as stopped:
        bench()
    assert stopped.value.code == code
    assert "error: The table was stopped; the same command goes on" in bench.capsys.readouterr().err
    bench.codes({})
    assert bench()[0] == 0
    assert [words[-1].rpartition("/")[2] for words in bench.called] == ["first", "second", "second", "third"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rows", "4"], "small has no row 4: its rows are 1 to 3."),
        (["--rows", "0"], "small has no row 0: its rows are 1 to 3."),
        (["--rows", "one"], "argument --rows"),
        (["--rows", "3-1"], "argument --rows"),
        (["--rows", "1-99999999999"], "are too many numbers"),
        (["--rows", ""], "argument --rows"),
        (["--seeds", "x"], "argument --seeds"),
        (["--", "--trainer.default_root_dir", "x"], "give --output to `cli.py table` instead"),
        (["--", "--trainer.default_root_dir=x"], "give --output to `cli.py table` instead"),
        (["--", "--model.seed", "3"], "give --seeds to `cli.py table` instead"),
        (["--data.num_test", "3"], "cli.py table: "),
    ],
)
def test_what_is_refused(words: list[str], told: str, bench: Bench) -> None:
    with pytest.raises(ValueError) as refused:
        bench(*words)
    assert told in str(refused.value)
    assert bench.called == []


def test_results_are_below_runs_if_nothing_is_said(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(bench.folder)
    assert run_command([str(bench.table), "--list"], Path(sys.executable)) == 0
    assert "--trainer.default_root_dir runs/tables/small/first" in capsys.readouterr().out
