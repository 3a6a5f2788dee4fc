"""A run that is told to stop, or loses a process, ends with a sentence that says how to go on, and not with code 0."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from callbacks import Stopping, heartbeat
from callbacks.finish import wait_for
from callbacks.heartbeat import Heartbeat, Watch
from callbacks.ticker import Ticker


def _killed(words: list[str], ready: Callable[[], bool], child: bool = False) -> tuple[int, str]:
    """Exit code and output of a command that gets SIGTERM, or its first child does, as soon as it is ``ready``."""
    command = [sys.executable, "cli.py", *words, "--trainer.accelerator", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as run:
        while not ready() and run.poll() is None:
            time.sleep(0.05)
        assert run.poll() is None, run.communicate()[1]
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split() if child else []
        os.kill(int(children[0]) if child else run.pid, signal.SIGTERM)
        return run.wait(), run.communicate()[1]


def test_sigterm_to_one_of_two_processes_ends_an_evaluation_in_the_middle_of_a_batch(
    tmp_path: Path, digit_weights: dict[str, Path]
) -> None:
    """Stock Lightning waits for the batch, here for days; then that process exits with 0, and the other waits on."""
    words = ["test", "-c", "configs/eval/digits_undefended.yaml", "--trainer.default_root_dir", str(tmp_path)]
    words += ["--model.classifier.weights", str(digit_weights["classifier"]), "--data.num_test", "2"]
    words += ["--model.attack", "configs/attack/pgd20.yaml", "--model.attack.selection", "last"]
    words += ["--model.attack.num_steps", "100000000"]
    words += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]

    def ready() -> bool:
        at_work = len(list((tmp_path / ".processes").glob("*"))) == 2
        return at_work and any((tmp_path / "provenance").glob("*.json"))

    code, told = _killed(words, ready, child=True)
    assert code == 143
    (error,) = [line for line in told.splitlines() if line.startswith("error: ")]
    assert "the same command goes on: python cli.py test -c configs/eval/digits_undefended.yaml" in error


def test_on_a_terminal_the_sentence_stands_below_what_was_drawn(tmp_path: Path, digit_weights: dict[str, Path]) -> None:
    words = ["test", "-c", "configs/eval/digits_undefended.yaml", "--trainer.default_root_dir", str(tmp_path)]
    words += ["--model.classifier.weights", str(digit_weights["classifier"]), "--data.num_test", "2"]
    words += ["--model.attack", "configs/attack/pgd20.yaml", "--model.attack.selection", "last"]
    words += ["--model.attack.num_steps", "100000000", "--trainer.accelerator", "cpu"]
    reader, writer = os.openpty()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "80"}
    run = subprocess.Popen(
        [sys.executable, "cli.py", *words], stdout=subprocess.DEVNULL, stderr=writer, env=environment
    )
    os.close(writer)
    told = ""
    with suppress(OSError):  # that is how a terminal ends
        while part := os.read(reader, 65536).decode(errors="replace"):
            told += part
            if "PGD · " in told and "error: " not in told:
                run.terminate()
    os.close(reader)
    assert run.wait() == 143
    drawn, _, error = told.rpartition("\r\nerror: ")
    assert "0/2 images" in drawn
    assert error.startswith("Stopped by SIGTERM. Recorded images are kept; the same command goes on: python cli.py")
    assert "\x1b" not in error
    assert told.rfind("\x1b[?25h") > told.rfind("\x1b[?25l")


def test_sigterm_ends_a_training_and_names_its_checkpoint(tmp_path: Path) -> None:
    words = ["fit", "-c", "configs/train/digits_classifier.yaml", "--trainer.default_root_dir", str(tmp_path)]
    words += ["--trainer.max_epochs", "100000", "--trainer.limit_train_batches", "1", "--model.optimizer.lr", "0.0001"]
    code, told = _killed(words, lambda: any((tmp_path / "checkpoints").glob("*.ckpt")))
    assert code == 143
    (error,) = [line for line in told.splitlines() if line.startswith("error: ")]
    checkpoint = Path(error.rpartition("--ckpt_path ")[2])
    assert checkpoint.parent == tmp_path / "checkpoints"
    assert not (tmp_path / "weights.safetensors").exists()


def test_the_checkpoint_of_the_command_gives_way_to_the_last_one(tmp_path: Path) -> None:
    words = ["fit", "-c", "a b.yaml", "--ckpt_path", "old.ckpt", "--trainer.max_epochs", "3", "--ckpt_path=older.ckpt"]
    stopping: Any = Stopping(words)
    saved = ModelCheckpoint(dirpath=tmp_path)
    stopping.trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.FITTING), checkpoint_callbacks=[saved])
    assert "no checkpoint yet" in stopping.advice()
    (tmp_path / "last.ckpt").touch()
    expected = f"python cli.py fit -c 'a b.yaml' --trainer.max_epochs 3 --ckpt_path {tmp_path}/last.ckpt"
    assert stopping.advice().endswith(expected)


def test_the_context_leaves_signals_as_they_were() -> None:
    before, environment = signal.getsignal(signal.SIGTERM), dict(os.environ)
    with Stopping([]):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    assert dict(os.environ) == environment


@pytest.mark.parametrize("lightning", [True, False], ids=["at work", "while set up"])
def test_ctrl_c_tells_how_to_go_on(lightning: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """Stock Lightning leaves with code 1, says nothing, and ignores every later Ctrl-C of the process."""

    def run() -> None:
        with Stopping(["test", "-c", "a.yaml"]):
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                if not lightning:
                    raise
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                sys.exit(1)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 130
    assert "Stopped by Ctrl-C. The same command starts again: python cli.py test -c a.yaml" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) == before


def _records(folder: Path, *indices: int) -> Path:
    folder.mkdir()
    (folder / "shard.jsonl").write_text("".join(f'{{"index": {index}, "label": 0}}\n' for index in indices))
    return folder


def test_nobody_waits_for_a_process_that_has_ended(tmp_path: Path) -> None:
    records = _records(tmp_path / "records", 0, 2)
    other = Heartbeat(tmp_path, "start", 1)
    other.start()
    assert Watch(tmp_path, "start").works(1)
    other.stop()
    watch = Watch(tmp_path, "start")
    with pytest.raises(OSError, match=r"2 records are missing in .*: process 1 ended before .* type this"):
        wait_for(records, [{(0, 0), (0, 2)}, {(0, 1), (0, 3)}], watch, "type this")
    wait_for(records, [{(0, 0), (0, 2)}, set()], watch, "")  # it owes nothing
    watch.clear()
    assert not (tmp_path / ".processes").exists()


def test_a_process_that_gives_no_sign_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = _records(tmp_path / "records", 0)
    monkeypatch.setattr(heartbeat, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(OSError, match="process 1 ended"):
        wait_for(records, [{(0, 0)}, {(0, 1)}], Watch(tmp_path, "start"), "")


def test_one_waits_for_a_process_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = _records(tmp_path / "records", 0)
    other = Heartbeat(tmp_path, "start", 1)
    other.start()

    def sleep(seconds: float) -> None:
        (records / "other.jsonl").write_text('{"index": 1, "label": 0}\n')

    monkeypatch.setattr("callbacks.finish.time.sleep", sleep)
    wait_for(records, [{(0, 0)}, {(0, 1)}], Watch(tmp_path, "start"), "")
    other.stop()


def test_a_ticker_goes_on_until_it_is_stopped() -> None:
    calls: list[int] = []
    ticker = Ticker(0.001, lambda: calls.append(1))
    for _ in range(2):
        before = len(calls)
        ticker.start()
        while len(calls) < before + 2:
            time.sleep(0.001)
        ticker.stop()
    count = len(calls)
    time.sleep(0.01)
    assert len(calls) == count
