"""Whether a finished run is an evaluation that a row of a table chooses."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lustral.ratio import parse_ratio
from lustral.recipes import imported
from lustral.tables.choice import Choice

_FREE = {
    "data": ("root", "batch_size", "num_workers", "download", "num_test", "test_subset", "num_train", "num_val"),
    "threat": ("bounds",),
}
"""Options that are not compared: those of a data module that say where its images lie and how many are taken, not what
they are, and the bounds that every image has."""


def fits(choice: Choice, config: Mapping[str, Any]) -> bool:
    """Whether a run's resolved configuration (``provenance.config`` of its card) is what ``choice`` chooses: data,
    classifier, purifier, attack and threat have the same classes and options, those that are left out being the
    classes' defaults, and so has ``merge``. Weights are compared by their file's name, with its folder where all files
    made here have that name. How many images are tested, the protocol, the seed and the rows of a call are free."""
    model = (config.get("model") or {}).get("init_args") or {}
    given = {"data": config.get("data"), **{name: model.get(name) for name in _COMPARED}}
    parts = choice.parts()
    if model.get("merge", "mean") != choice.options.get("model.merge", "mean"):
        return False
    return all(_equal(parts[name], given[name], _FREE.get(name, ())) for name in ("data", *_COMPARED))


def same_draws(choice: Choice, config: Mapping[str, Any]) -> bool:
    """Whether a run's verdicts take as many draws as ``choice`` says."""
    protocol = ((config.get("model") or {}).get("init_args") or {}).get("protocol") or {}
    return (choice.parts()["protocol"] or {}).get("verdict_draws") == protocol.get("verdict_draws")


_MADE_HERE = ("weights.safetensors", "reference.json")
"""Names that every training and every reference gives to its file."""
_COMPARED = ("classifier", "purifier", "attack", "threat")


def _equal(chosen: Any, given: Any, free: tuple[str, ...] = ()) -> bool:
    if isinstance(chosen, str) and isinstance(given, Mapping):
        chosen = {"class_path": chosen}
    if isinstance(chosen, Mapping) and isinstance(given, Mapping):
        made_by = given.get("class_path", chosen.get("class_path"))
        if made_by != chosen.get("class_path"):
            return False
        defaults = {} if made_by is None else _defaults(str(made_by))
        if made_by is not None:
            chosen, given = chosen.get("init_args") or {}, given.get("init_args") or {}
        names = (chosen.keys() | given.keys()) - set(free)
        return all(
            _same_file(chosen.get(name), given.get(name))
            if name in ("weights", "file")
            else _equal(chosen.get(name, defaults.get(name)), given.get(name, defaults.get(name)))
            for name in names
        )
    if isinstance(chosen, (list, tuple)) and isinstance(given, (list, tuple)):
        return len(chosen) == len(given) and all(map(_equal, chosen, given))
    return chosen == given or _same_number(chosen, given)


def _same_file(one: Any, other: Any) -> bool:
    return one == other or (one is not None and other is not None and _name(Path(one)) == _name(Path(other)))


def _name(file: Path) -> str:
    return f"{file.parent.name}/{file.name}" if file.name in _MADE_HERE else file.name


def _same_number(one: Any, other: Any) -> bool:
    """Such as ``8/255`` and 0.03137..."""
    try:
        return not isinstance(one, bool) and not isinstance(other, bool) and parse_ratio(one) == parse_ratio(other)
    except (ValueError, TypeError):
        return False


def _defaults(class_path: str) -> dict[str, Any]:
    """The default arguments of a class or function; none if there is no such thing here."""
    try:
        parameters = inspect.signature(imported(class_path)).parameters
    except (ImportError, AttributeError, ValueError, TypeError):
        return {}
    return {key: value.default for key, value in parameters.items() if value.default is not value.empty}
