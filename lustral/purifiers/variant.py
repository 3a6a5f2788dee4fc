"""The defence's own purifier with other settings, for attacks to differentiate."""

from collections.abc import Mapping
from typing import Any

from lustral.describe import rebuilt
from lustral.purifiers.base import Purifier


class Variant:
    """A surrogate that follows the defence: its purifier, made anew with some plain values changed. Networks, stored
    references and the victim are shared.

    Args:
        changes: by the purifier's argument names, dotted for those of an inner one: {"rounding": "straight_through"},
            {"purifier.num_steps": 5, "levels.temperature": 20.0}.

    Raises:
        ValueError: if there are no changes; on `of`, if a name is not known.
    """

    def __init__(self, changes: dict[str, Any]) -> None:
        if not isinstance(changes, Mapping) or not changes:
            raise ValueError(f"changes is {changes!r}; name at least one argument of the defence's purifier.")
        self.changes = changes

    def of(self, purifier: Purifier) -> Purifier:
        """The variant of ``purifier``."""
        return rebuilt(purifier, self.changes, always=(Purifier,))
