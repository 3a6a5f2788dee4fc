"""What decides a result, as plain data and as a hash: records of different fingerprints never mix."""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from lustral.ratio import parse_ratio

SCHEMA = 2
"""Raised whenever the code changes what a number means; older records are then refused, not blended in."""


@dataclass(frozen=True)
class Fingerprint:
    """The part of a run that decides its results: defence, attack, threat, protocol, seed, R and data.

    Not in it: trainer, batch size, budgets, paths and the number of images, which must not change a result.
    """

    decides: dict[str, Any]

    @property
    def sha256(self) -> str:
        return self.hashed(SCHEMA)

    def hashed(self, schema: int) -> str:
        """The hash under a schema, which may be that of an older version."""
        canonical = json.dumps({"schema": schema, **_plain(self.decides)}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def differences(self, other: dict[str, Any]) -> list[str]:
        """The keys, dotted, in which ``other`` differs."""
        here, there = _flat(_plain(self.decides)), _flat(_plain(other))
        return sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))


_RATIO = re.compile(r"^\s*[\d.]+\s*/\s*[\d.]+\s*$")


def _plain(value: Any) -> Any:
    """``value`` with ratios as numbers: a budget of 8/255 is that of 0.03137254901960784."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return parse_ratio(value) if isinstance(value, str) and _RATIO.match(value) else value


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}.{key}" if prefix else key)
    return flat
