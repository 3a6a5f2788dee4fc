"""Progress is told whatever the evaluation is at: lines in a log, bars on a terminal."""

import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from callbacks import InnerProgress


def _progress(seconds: float = 30.0) -> Any:
    progress: Any = InnerProgress(seconds)
    progress._module = SimpleNamespace(in_work=4, main_task="PGD", so_far="robust")
    progress._todo, progress._start = 8, time.monotonic()
    progress._observe("PGD", 1, 2)
    return progress


def test_a_log_gets_a_line_though_nothing_new_was_observed(capsys: pytest.CaptureFixture[str]) -> None:
    progress = _progress(seconds=0.01)
    for _ in range(2):
        progress._printed -= 1
        progress._tick()
    progress._observe("verdict on adversarial images", 16, 64)
    progress._printed -= 1
    progress._tick()
    progress._tick()  # too soon
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.startswith("0/8 images · PGD · 1/2 · 0:00 at it")
    assert second.startswith("0/8 images · PGD · 1/2")
    assert "verdict on adversarial images · 16/64" in third


def test_nothing_is_drawn_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich alone would take it for a terminal where this is set, as services that build software do."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert _progress()._on_terminal() is None


@contextmanager
def _terminal() -> Iterator[Callable[[], str]]:
    """Standard error is a terminal of 80 columns; what it was given since it was last asked."""
    reader, writer = os.openpty()

    def given() -> str:
        found = b""
        while select.select([reader], [], [], 0.1)[0]:  # it hands on what it was given piece by piece
            found += os.read(reader, 65536)
        return found.decode()

    with pytest.MonkeyPatch.context() as patch, os.fdopen(writer, "w") as file:
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "80")
        for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            patch.delenv(name, raising=False)
        patch.setattr(sys, "stderr", file)
        yield given
    os.close(reader)


def test_a_terminal_shows_bars_and_in_the_end_a_line() -> None:
    with _terminal() as terminal:
        progress, file = _progress(), sys.stderr
        progress._live = progress._on_terminal()
        first = terminal()
        assert "0/8 images · 0:0" in first
        assert "PGD · 1/2 · 0:0" in first
        assert "robust" not in first
        assert first.rfind("\x1b[?25h") > first.rfind("\x1b[?25l")  # the cursor is there, should the process be killed

        print("a warning", file=sys.stderr)  # comes to stand above
        above, _, below = terminal().partition("a warning")
        assert "0/8 images" not in above
        assert "0/8 images" in below
        progress._done, progress._judged, progress._right = 4, 4, 2.0
        progress._tick()
        drawn = terminal()
        assert "4/8 images" in drawn
        assert "robust so far 50.0 % [15.0, 85.0] (n = 4)" in drawn
        progress.on_test_end(None, None)
        assert sys.stderr is file
        last = terminal().rpartition("\x1b[2K")[2]
        assert last.startswith("4/8 images · robust so far 50.0 % [15.0, 85.0] (n = 4) · 0:0")
        assert last.endswith("\r\n")


def test_an_exception_leaves_a_line_that_says_how_far_it_came() -> None:
    with _terminal() as terminal:
        progress, file = _progress(), sys.stderr
        progress._live = progress._on_terminal()
        progress.on_exception(None, None, ValueError())
        told = terminal()
        last = told.rpartition("\x1b[2K")[2]
        assert last.startswith("0/8 images · PGD · 1/2 · 0:0")
        assert last.endswith(" spent\r\n")
        assert told.rfind("\x1b[?25h") > told.rfind("\x1b[?25l")
        assert sys.stderr is file


def test_whoever_ends_the_process_is_given_the_screen() -> None:
    with _terminal() as terminal:
        progress, file = _progress(), sys.stderr
        progress._live = live = progress._on_terminal()
        progress._ticker.seconds = 0.001
        progress._ticker.start()
        progress.freeze()
        terminal()
        os.write(file.fileno(), b"stopped")
        time.sleep(0.02)
        progress.on_exception(None, None, SystemExit())
        assert terminal() == "stopped"
        live.stop()
