"""Evaluations made small, and sheets of pictures with one noise level on them instead of four."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import cli as front_door
from callbacks import Panels
from lustral.evaluation import selfcheck
from tests.cli.shrunk import Shrinker


@pytest.fixture(autouse=True, scope="session")
def _small_sheets() -> Iterator[None]:
    """Each level is a purification and a row of pictures more; tests/callbacks draw all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(front_door, "Panels", lambda: Panels(num_images=2, levels=(0.5,)))
        yield


@pytest.fixture
def brief_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """A self-check in two orders instead of three or four, in which images still change their rows and neighbours;
    `tests/lustral/test_selfcheck.py` has all of them."""
    orders = selfcheck._orders
    monkeypatch.setattr(selfcheck, "_orders", lambda look, few=False: orders(look, few=True))


@pytest.fixture(scope="session")
def shrinker(tmp_path_factory: pytest.TempPathFactory, digit_weights: dict[str, Path]) -> Shrinker:
    """What makes an evaluation small, with files that are written once."""
    return Shrinker(
        tmp_path_factory.mktemp("shrunk"), digit_weights, lambda *words: front_door.main([str(w) for w in words])
    )
