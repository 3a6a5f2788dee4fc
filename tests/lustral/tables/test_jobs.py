"""A row under a seed is one command in a folder of its own."""

import json
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from lustral.tables import HAVE_A_CARD, call, make_jobs, missing, read_table
from lustral.tables.jobs import FINISHED, Job

SCRIPT = """import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--trainer.default_root_dir") + 1])
code = int((folder / "code").read_text()) if (folder / "code").exists() else 0
folder.mkdir(parents=True, exist_ok=True)
if code in (0, 3):
    (folder / "card.json").write_text("{}")
sys.exit(code)
"""


@pytest.fixture
def jobs(write_table: Callable[..., Path], tmp_path: Path) -> Callable[..., list[Job]]:
    rows = read_table(write_table()).rows
    return lambda seeds=(0,), more=(): make_jobs(rows, seeds, tmp_path / "runs", more)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """In the place of cli.py: writes a card, or ends with the code that lies in the folder."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def test_each_row_and_seed_has_its_folder_and_command(jobs: Callable[..., list[Job]], tmp_path: Path) -> None:
    made = jobs((0, 2), ["--data.num_test", "50"])
    assert [(job.row.name, job.seed, job.folder.name) for job in made] == [
        ("one", 0, "one"),
        ("one", 2, "one-seed2"),
        ("two", 0, "two"),
        ("two", 2, "two-seed2"),
    ]
    for job in made:
        place = ["--trainer.default_root_dir", str(tmp_path / "runs" / job.folder.name)]
        seeded = ["--model.seed", "2"] if job.seed else []
        words = ["test", *job.row.choice.words(), "--data.num_test", "50", *seeded, *place]
        assert list(job.words) == words, "what is said for all rows comes after what the row says"
        assert shlex.split(job.command) == ["python", "cli.py", *words]


def test_a_job_is_done_when_this_very_command_has_ended(jobs: Callable[..., list[Job]], script: Path) -> None:
    job = jobs()[0]
    assert (job.state, job.done) == ("-", False)
    assert job.run(script) == 0
    assert (job.state, job.done) == ("done", True)
    assert json.loads((job.folder / FINISHED).read_text()) == list(job.words)
    assert not jobs(more=["--data.num_test", "9"])[0].done, "another command"
    (job.folder / "card.json").unlink()
    assert not job.done
    (job.folder / FINISHED).write_text("{broken")
    assert not job.done


@pytest.mark.parametrize(("code", "done"), [(0, True), (3, True), (1, False), (143, False)])
def test_only_what_has_a_card_has_ended(code: int, done: bool, jobs: Callable[..., list[Job]], script: Path) -> None:
    job = jobs()[1]
    job.folder.mkdir(parents=True)
    (job.folder / "code").write_text(str(code))
    assert job.run(script) == code
    assert job.done == done == (code in HAVE_A_CARD)


def test_the_state_counts_records(jobs: Callable[..., list[Job]]) -> None:
    job = jobs()[0]
    (job.folder / "records").mkdir(parents=True)
    assert job.state == "-"
    (job.folder / "records" / "shard.jsonl").write_text('{"index": 3, "label": 0}\n{"index": 4, "label": 0}\n')
    assert job.state == "2 recorded"


def test_needs_that_are_there_are_not_made(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("")
    needs = {str(tmp_path / "there"): "one", str(tmp_path / "not"): "two"}
    assert missing(needs) == {str(tmp_path / "not"): "two"}


@pytest.mark.parametrize("ends", ["sys.exit(143)", "sys.exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_sigterm_is_handed_on_and_ends_with_143(ends: str, tmp_path: Path) -> None:
    """However the process takes it: in the middle of its work, at its very end, or before it can listen."""
    path = tmp_path / "waits.py"
    path.write_text(
        "import os, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: {ends})\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )
    assert call(path, []) == 143


def test_ctrl_c_is_waited_for_and_ends_with_130(tmp_path: Path) -> None:
    """It reaches both, and the process takes its time to tidy up."""
    path = tmp_path / "waits.py"
    path.write_text(
        "import os, pathlib, signal, time\n"
        "os.kill(os.getppid(), signal.SIGINT)\n"
        "time.sleep(0.6)\n"
        "pathlib.Path(__file__).with_name('tidied').write_text('')\n"
    )
    assert call(path, []) == 130
    assert (tmp_path / "tidied").exists()


def test_the_handler_of_signals_is_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    path = tmp_path / "five.py"
    path.write_text("import sys; sys.exit(int(sys.argv[1]))")
    assert call(path, ["5"]) == 5
    assert signal.getsignal(signal.SIGTERM) == before
