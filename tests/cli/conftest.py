"""What the front door draws at the end of an evaluation, with one noise level on its sheet instead of four."""

from collections.abc import Iterator

import pytest

import cli as front_door
from callbacks import Panels


@pytest.fixture(autouse=True, scope="session")
def _small_sheets() -> Iterator[None]:
    """Each level is a purification and a row of pictures more; tests/callbacks draw all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(front_door, "Panels", lambda: Panels(num_images=2, levels=(0.5,)))
        yield
