"""Progress is told whatever the evaluation is at."""

from types import SimpleNamespace
from typing import Any

import pytest

from callbacks import InnerProgress


def test_a_log_gets_a_line_though_nothing_new_was_observed(capsys: pytest.CaptureFixture[str]) -> None:
    progress: Any = InnerProgress(seconds=0.01)
    progress._module = SimpleNamespace(in_work=4, evaluator=SimpleNamespace(attack=SimpleNamespace(name="PGD")))
    progress._todo = 8
    progress._observe("PGD", 1, 2)
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
