"""The fingerprint: what decides a result, as plain data and as a hash. Records of different fingerprints never mix."""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from lustral.ratio import parse_ratio

SCHEMA = 2
"""Increased whenever the code changes the meaning of a number; a run then refuses to add to older records."""


@dataclass(frozen=True)
class Fingerprint:
    """The part of a run that decides its results: defence, attack, threat, protocol, seed, R and data.

    Trainer, batch size, memory budgets, paths and the number of images are left out: they must not change a result.
    """

    decides: dict[str, Any]

    @property
    def sha256(self) -> str:
        return self.hashed(SCHEMA)

    def hashed(self, schema: int) -> str:
        """The hash under the given schema, which may be that of an older version."""
        canonical = json.dumps({"schema": schema, **_plain(self.decides)}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def differences(self, other: dict[str, Any]) -> list[str]:
        """The dotted keys in which ``other`` differs, sorted."""
        here, there = _flat(_plain(self.decides)), _flat(_plain(other))
        return sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))


_RATIO = re.compile(r"^\s*[\d.]+\s*/\s*[\d.]+\s*$")


def _plain(value: Any) -> Any:
    """``value`` with ratios as numbers: "8/255" and 0.03137254901960784 are the same budget."""
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
