"""One number, whatever the batch size, the number of processes, an interruption or an extension."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lustral.evaluation import read_records

pytestmark = pytest.mark.usefixtures("brief_check")


@pytest.fixture(scope="module")
def words(digit_weights: dict[str, Path]) -> list[str]:
    """A small evaluation of DiffPure, random enough to show any noise that is shared or misplaced."""
    return [
        *("test", "-c", "configs/eval/digits_diffpure.yaml", "--trainer.accelerator", "cpu", "--data.num_test", "5"),
        *("--model.classifier.weights", str(digit_weights["classifier"]), "--model.purifier.num_steps", "2"),
        *("--model.purifier.denoiser.weights", str(digit_weights["denoiser"]), "--model.rows", "4"),
        *("--model.attack.num_steps", "2", "--model.attack.eot", "2", "--model.attack.selection_draws", "2"),
        *("--model.protocol.verdict_draws", "2", "--model.protocol.audit_images", "0"),
    ]


def _records(run: Path) -> dict[int, str]:
    """Without the audits, which a shorter run may have more of."""
    bare = {"audit": {}, "audit_margins": {}, "audit_steps": {}}
    return {index: replace(record, **bare).to_json() for index, record in read_records(run / "records").items()}


def _card(run: Path) -> dict[str, object]:
    card = json.loads((run / "card.json").read_text())
    return {key: card[key] for key in ("status", "n", "verdicts", "audit", "fingerprint", "attack", "defence")}


@pytest.fixture(scope="module")
def reference(words: list[str], cli: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("reference")
    assert cli(*words, "--trainer.default_root_dir", run, "--data.batch_size", "64") == 0
    return run


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def test_batch_size_memory_budget_and_extension_change_nothing(
    reference: Path, words: list[str], cli: Callable[..., int], tmp_path: Path
) -> None:
    run, whole, audited = tmp_path / "run", tmp_path / "audited", ("--model.protocol.audit_images", "1")
    assert cli(*words, *audited, "--trainer.default_root_dir", whole, "--data.batch_size", "64") == 0
    small = (*audited, "--trainer.default_root_dir", run, "--data.batch_size", "2", "--model.graph_budget_mib", "0")
    assert cli(*words, *small, "--data.num_test", "3") == 0
    assert cli(*words, *small) == 0
    assert _records(run) == _records(whole) == _records(reference)
    assert _card(run) == _card(whole)


def test_the_number_of_threads_changes_nothing(
    reference: Path, words: list[str], cli: Callable[..., int], tmp_path: Path
) -> None:
    """Two threads split sums otherwise than one, and their last bits differ."""
    run = tmp_path / "run"
    torch.set_num_threads(2)  # as OMP_NUM_THREADS=2 leaves it
    try:
        assert cli(*words, "--trainer.default_root_dir", run) == 0
    finally:
        torch.set_num_threads(1)
    assert _records(run) == _records(reference)


def test_another_seed_changes_the_records(
    reference: Path, words: list[str], cli: Callable[..., int], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert cli(*words, "--trainer.default_root_dir", run, "--model.seed", "1") == 0
    assert _records(run) != _records(reference)


def _on_two_processes(words: list[str], run: Path, *more: str) -> str:
    """What an evaluation on two processes says."""
    command = [sys.executable, "cli.py", *words, "--trainer.default_root_dir", str(run), *more]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=_environment())
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_one_of_two_processes_may_have_nothing_to_do(reference: Path, words: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    _on_two_processes(words, run, "--data.num_test", "1", "--data.batch_size", "2")
    expected, found = _records(reference), _records(run)
    assert len(found) == 1
    assert found == {index: expected[index] for index in found}


def test_a_killed_run_goes_on_on_two_processes_and_ends_with_the_same_records(
    reference: Path, words: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ["cli.py", *words, "--trainer.default_root_dir", str(run), "--data.batch_size", "1"]
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_environment()
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if len(_records(run)) >= 1:
            break
        time.sleep(0.02)
    process.kill()
    process.wait()
    kept = _records(run)
    assert 1 <= len(kept) <= 3, "the run was killed too early, or too late to leave something for both processes"
    told = _on_two_processes(words, run, "--data.batch_size", "2")
    assert "have a record already and are skipped" in told
    assert len(list((run / "records").glob("*.jsonl"))) == 3  # of the first process, and of both of the second start
    assert _records(run) == _records(reference)
    assert _card(run) == _card(reference)
