"""The defence's own purifier with other settings, for attacks to differentiate."""

from collections.abc import Mapping
from typing import Any

from lustral.describe import rebuilt
from lustral.purifiers.base import Purifier


class Variant:
    """A surrogate defined by its differences from the defence: the defence's purifier with some plain values changed.

    Networks, stored references and the victim are shared with the defence.

    Args:
        changes: new values by the purifier's argument names, dotted for those of an inner component: {"rounding":
            "straight_through"}, {"purifier.num_steps": 5, "levels.temperature": 20.0}.

    Raises:
        ValueError: if there are no changes; in `of`, if a name is unknown or a value is refused.
    """

    def __init__(self, changes: dict[str, Any]) -> None:
        if not isinstance(changes, Mapping) or not changes:
            raise ValueError(f"changes is {changes!r}; name at least one argument of the defence's purifier.")
        self.changes = changes

    def of(self, purifier: Purifier) -> Purifier:
        """The variant of ``purifier``."""
        return rebuilt(purifier, self.changes, always=(Purifier,))
