"""Recipes: YAML files that pick one file out of each group of ``configs/``."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml


def run_folder(recipes: Sequence[str | Path]) -> Path:
    """Where a recipe's results go: ``runs/<group>/<name>`` for ``configs/<group>/<name>.yaml``.

    Of several layered files the first one of group ``train`` or ``eval`` names the run, else the first.
    """
    paths = [Path(path) for path in recipes]
    named = [path for path in paths if path.resolve().parent.name in ("train", "eval")] or paths
    if not named:
        return Path("runs") / "unnamed"
    return Path("runs") / named[0].resolve().parent.name / named[0].stem


def check_layers(recipes: Sequence[str | Path]) -> None:
    """Refuse layered files that choose different classes for one part.

    The parser would keep the first class's arguments and hand them to the second where their names agree, without
    a word: a purifier with another one's noise level, say.
    """
    chosen: dict[str, tuple[str, Path]] = {}
    for recipe in recipes:
        for key, class_path in _class_paths(Path(recipe)):
            before, source = chosen.setdefault(key, (class_path, Path(recipe)))
            if before != class_path:
                raise ValueError(
                    f"{source} chooses {before} for {key}, and {recipe} chooses {class_path}: arguments of the first "
                    f"would leak into the second. Copy the recipe and name one class, or give --{key}=CLASS on the "
                    "command line."
                )


def _class_paths(path: Path) -> Iterator[tuple[str, str]]:
    """Every (dotted key, class path) of a YAML file and of the files that it picks by path."""
    if path.is_file():
        yield from _walk(yaml.safe_load(path.read_text()), "", path.parent)


def _walk(value: Any, key: str, folder: Path) -> Iterator[tuple[str, str]]:
    if isinstance(value, str) and value.endswith((".yaml", ".yml")) and (folder / value).is_file():
        picked = folder / value
        yield from _walk(yaml.safe_load(picked.read_text()), key, picked.parent)
    elif isinstance(value, dict):
        if "class_path" in value:
            yield key, value["class_path"]
        for name, item in value.items():
            inner = key if name == "init_args" else f"{key}.{name}" if key else str(name)
            if name != "class_path":
                yield from _walk(item, inner, folder)
