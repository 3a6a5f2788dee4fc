"""Runs that differ in one numeric argument and in nothing else."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lustral.ratio import parse_ratio
from lustral.reporting.runs import Run

DERIVED = ("sigma", "sigma_small", "network_calls", "mean_level", "pull")
"""The derived quantities in a purifier's description (`Purifier.derived`), which follow from its arguments."""

_LEVEL, _STEPS = "t_star", "num_steps"
_RATIO = re.compile(r"[\d.]+\s*/\s*[\d.]+$")
Settings = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """Runs that differ in one numeric argument.

    Attributes:
        argument: the argument's dotted name, such as ``defence.purifier.levels.temperature``.
        values: its value in each run, ascending and all different.
        runs: the runs, in the same order.
    """

    argument: str
    values: tuple[float, ...]
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """The argument's name without the dotted prefix."""
        return _leaf(self.argument)

    @property
    def labels(self) -> list[str]:
        """The values as text; budgets as they were given, such as "8/255"."""
        if self.argument == "attack.threat.eps":
            return [str(run.card["attack"]["threat"]["eps"]) for run in self.runs]
        return [f"{value:g}" for value in self.values]


def find_sweeps(runs: Sequence[Run]) -> list[Sweep]:
    """Every set of at least two runs that differ in exactly one numeric argument of defence, attack or threat.

    An argument that occurs in several places (of a surrogate and of the defence) counts as one if the runs change it in
    all of them together. So does t* with the number of steps, if all runs have steps of equal length. Of runs with
    equal settings the first is taken. Images, the audit and costs may differ; seeds must agree.
    """
    settings = [_settings(run) for run in runs]
    numbers = dict.fromkeys(key for each in settings for key in each if _number(each[key]) is not None)
    swept = [key for key in numbers if key.startswith(("defence.", "attack.")) and _leaf(key) != "seed"]
    leaves: dict[str, set[str]] = defaultdict(set)
    for key in swept:
        leaves[_leaf(key)].add(key)
    together = [keys for keys in leaves.values() if len(keys) > 1]
    found: dict[tuple[str, ...], Sweep] = {}
    _collect(found, runs, settings, swept, [*({key} for key in swept), *together])
    levels = [key for key in swept if _leaf(key) == _LEVEL]
    _collect(found, runs, [_with_lengths(each) for each in settings], levels, [*({key} for key in levels), {*levels}])
    return list(found.values())


def _collect(
    found: dict[tuple[str, ...], Sweep],
    runs: Sequence[Run],
    settings: Sequence[Settings],
    swept: Sequence[str],
    sets: Sequence[set[str]],
) -> None:
    """Add the sweeps over each of the ``sets`` of dotted arguments to those that were ``found``, by their runs."""
    for keys in sets:
        buckets: dict[str, dict[float, Run]] = defaultdict(dict)
        arguments: dict[str, str] = {}
        for run, each in zip(runs, settings, strict=True):
            here = [key for key in swept if key in keys & each.keys()]
            values = {each[key] for key in here}
            if len(values) == 1 and values != {None}:
                rest = json.dumps({key: None if key in here else item for key, item in each.items()}, sort_keys=True)
                buckets[rest].setdefault(values.pop(), run)
                arguments[rest] = here[0]
        for rest, chosen in buckets.items():
            if len(chosen) > 1:
                values, members = zip(*sorted(chosen.items(), key=lambda item: item[0]), strict=True)
                # An argument that occurs in one place in these runs is found twice, alone and by its last name.
                found.setdefault(tuple(run.name for run in members), Sweep(arguments[rest], values, members))


def _with_lengths(settings: Settings) -> Settings:
    """The settings with the length of a step in the place of the number of steps, wherever there is a t*."""
    changed = dict(settings)
    for key, level in settings.items():
        steps = f"{key.rpartition('.')[0]}.{_STEPS}"
        if _leaf(key) == _LEVEL and isinstance(level, float) and isinstance(number := settings.get(steps), float):
            changed[steps] = f"of {level / number:.6g}"
    return changed


def _settings(run: Run) -> Settings:
    """The settings that decide a run's verdicts, by dotted name."""
    card = run.card
    protocol = {"verdict_draws": card["protocol"]["verdict_draws"]}
    decides = {name: card[name] for name in ("defence", "attack", "data", "seed", "rows")} | {"protocol": protocol}
    leave_out = {f"defence.purifier.{name}" for name in DERIVED}
    # The hash of reference scores is redundant: denoiser, statistic, images and seed are among the settings.
    kept = {k: v for k, v in _flat(decides).items() if k not in leave_out and not k.endswith(".scores_sha256")}
    return {key: value if _number(value) is None else _number(value) for key, value in kept.items()}


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
    if isinstance(value, str):
        return parse_ratio(value) if _RATIO.match(value) else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
