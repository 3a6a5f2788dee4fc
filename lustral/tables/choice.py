"""What a row of a table evaluates: a recipe, and what is chosen in the place of its parts."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lustral.recipes import in_yaml

GROUPS = {
    "data": "data",
    "classifier": "model.classifier",
    "purifier": "model.purifier",
    "attack": "model.attack",
    "threat": "model.threat",
    "protocol": "model.protocol",
}
"""The groups of ``configs/`` that a row may pick a file of, with the option that takes it."""
SET_BY_JOBS = ("trainer.default_root_dir", "model.seed")
"""Options that every job is given by itself, so that neither a row nor a user may set them."""


@dataclass(frozen=True)
class Choice:
    """An evaluation as ``cli.py test`` is told it.

    Attributes:
        recipe: the file of the first ``-c``.
        layers: those of further ones, in their order.
        groups: a file for some of `GROUPS`.
        options: values of dotted options, such as ``model.purifier.t_star``.
    """

    recipe: Path
    layers: tuple[Path, ...] = ()
    groups: Mapping[str, Path] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def words(self) -> list[str]:
        """The command line after ``python cli.py test``, with paths from the working directory."""
        words = [word for path in (self.recipe, *self.layers) for word in ("-c", _from_here(path))]
        for group, option in GROUPS.items():
            if group in self.groups:
                words += [f"--{option}", _from_here(self.groups[group])]
        for option, value in self.options.items():
            words += [f"--{option}", in_one_line(value)]
        return words

    def parts(self) -> dict[str, Any]:
        """The parts of the evaluation by group, as plain data with every picked file in its place. A part is what a
        recipe writes: a dict with ``class_path`` and ``init_args``, a class path alone, or plain options. ``layers``
        and ``options`` are in them; where two files choose different classes for a part, it is the second's alone.

        Raises:
            ValueError: if a file cannot be read.
        """
        whole: dict[str, Any] = {}
        for path in (self.recipe, *self.layers):
            _lay(whole, _read(path), path.parent)
        model = whole.get("model", {}).get("init_args", {})
        parts = {group: whole.get("data") if group == "data" else model.get(group) for group in GROUPS}
        parts |= {group: _followed(_read(path), path.parent) for group, path in self.groups.items()}
        for option, value in self.options.items():
            for group, start in GROUPS.items():
                if option.startswith(f"{start}."):
                    parts[group] = _with(parts[group], option.removeprefix(f"{start}.").split("."), value)
        return parts

    def files(self) -> Iterator[Path]:
        """Every file that is named."""
        yield from (self.recipe, *self.layers, *self.groups.values())


def in_one_line(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else in_yaml(value)


def _from_here(path: Path) -> str:
    return os.path.relpath(path)


@cache
def _read(path: Path) -> Any:
    """A file's content, which nobody changes: the rows of all tables pick the same few dozen files over and over."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "problem", None) or error
        raise ValueError(f"{path} cannot be read ({reason}): mend it, or choose another.") from error


def _followed(value: Any, folder: Path) -> Any:
    """``value`` with the content of every YAML file that it picks, relative to ``folder``, in its place."""
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        picked = folder / value
        return _followed(_read(picked), picked.parent)
    if isinstance(value, dict):
        return {name: _followed(inner, folder) for name, inner in value.items()}
    return [_followed(inner, folder) for inner in value] if isinstance(value, list) else value


def _lay(below: dict[str, Any], above: Mapping[str, Any], folder: Path) -> None:
    """Put a layer, whose files are relative to ``folder``, on what is there already. A file that it picks takes the
    whole place of what was there, and so does another class; options of the same class are changed one by one."""
    for name, value in above.items():
        there = below.get(name)
        if isinstance(there, dict) and isinstance(value, dict) and _same_class(there, value):
            below[name] = dict(there)
            _lay(below[name], value, folder)
        else:
            below[name] = _followed(value, folder)


def _same_class(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.get("class_path") == other.get("class_path", one.get("class_path"))


def _with(part: Any, path: list[str], value: Any) -> dict[str, Any]:
    """A part with one of its options changed."""
    part = {"class_path": part} if isinstance(part, str) else dict(part or {})
    if "class_path" in part:
        return {**part, "init_args": _with_option(part.get("init_args") or {}, path, value)}
    return _with_option(part, path, value)


def _with_option(options: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    name, *inner = path
    return {**options, name: _with(options.get(name), inner, value) if inner else value}
