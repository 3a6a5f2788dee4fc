"""Runs that differ in one numeric argument and in nothing else."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lustral.ratio import parse_ratio
from lustral.reporting.runs import Run

DERIVED = ("sigma", "network_calls", "mean_level", "pull")
"""What a purifier adds to its own description (`Purifier.derived`): it follows from the arguments."""

Settings = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """A curve's worth of runs.

    Attributes:
        argument: the dotted name of what differs, such as ``defence.purifier.levels.temperature``.
        values: of each run, ascending and all different.
        runs: in the same order.
    """

    argument: str
    values: tuple[float, ...]
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """The argument's own name."""
        return _leaf(self.argument)


def find_sweeps(runs: Sequence[Run]) -> list[Sweep]:
    """Every set of at least two runs that differ in exactly one numeric argument of defence, attack or threat.

    An argument that stands in several places (a surrogate's and the defence's) is one, if the runs change all of them
    together. Of runs that are equal the first counts. Images, the audit and costs do not matter.
    """
    settings = [_settings(run) for run in runs]
    numbers = list(dict.fromkeys(key for each in settings for key in each if _number(each[key]) is not None))
    swept = [key for key in numbers if key.startswith(("defence.", "attack."))]
    leaves: dict[str, set[str]] = defaultdict(set)
    for key in swept:
        leaves[_leaf(key)].add(key)
    together = [keys for keys in leaves.values() if len(keys) > 1]
    found = []
    for keys in [*({key} for key in swept), *together]:
        buckets: dict[str, dict[float, Run]] = defaultdict(dict)
        for run, each in zip(runs, settings, strict=True):
            values = {_number(each[key]) for key in keys & each.keys()}
            value = values.pop() if len(values) == 1 else None
            if value is not None:
                rest = {key: "swept" if key in keys else item for key, item in each.items()}
                buckets[json.dumps(rest, sort_keys=True)].setdefault(value, run)
        argument = next(key for key in swept if key in keys)
        for chosen in buckets.values():
            if len(chosen) > 1:
                values, members = zip(*sorted(chosen.items(), key=lambda item: item[0]), strict=True)
                found.append(Sweep(argument, values, members))
    return found


def _settings(run: Run) -> Settings:
    """Whatever decides a run's verdicts, flat, by dotted names."""
    card = run.card
    protocol = {"verdict_draws": card["protocol"]["verdict_draws"]}
    decides = {name: card[name] for name in ("defence", "attack", "data", "seed", "rows")} | {"protocol": protocol}
    leave_out = {f"defence.purifier.{name}" for name in DERIVED}
    # Scores follow from the denoiser, the statistic, the images and the seed, which are there.
    return {
        key: value
        for key, value in _flat(decides).items()
        if key not in leave_out and not key.endswith(".scores_sha256")
    }


def _flat(value: Any, prefix: str = "") -> Settings:
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: Settings = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _leaf(argument: str) -> str:
    return argument.rpartition(".")[2]


def _number(value: Any) -> float | None:
    """A number or a ratio ("8/255") as a number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return parse_ratio(value)
    except ValueError:
        return None
