"""Recipes: YAML files that pick one file out of each group of ``configs/``."""

import importlib
import inspect
import tempfile
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


def claim_folder(folder: str | Path) -> None:
    """Make the run folder and try to write in it: asked before any work is done.

    Raises:
        OSError: if it cannot be written.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"The run folder {folder} cannot be written ({error.strerror}): free or unlock it, or choose another with "
            "--trainer.default_root_dir."
        ) from error


def forget_weights(config: Any) -> None:
    """Leave every network whose architecture a parsed config (nested namespaces) gives without a weights file.

    A network that only a weights file describes keeps it.
    """
    for key, value in list(vars(config).items()):
        if key == "weights" and len(vars(config)) > 1:
            config[key] = None
        elif hasattr(value, "__dict__"):
            forget_weights(value)


def recipes_of(words: Sequence[str]) -> list[str]:
    """The files that command-line words give with -c or --config."""
    return [value for option, value in _options(words) if option in ("-c", "--config")]


def check_layers(words: Sequence[str]) -> None:
    """Refuse layers that choose different classes for one part.

    The parser keeps the first class's arguments and hands them to the second where their names agree, without a
    word: a purifier with another one's noise level, say. So two files may not disagree; and a class chosen on the
    command line must be given those arguments there too.

    Raises:
        ValueError: naming the part, both classes and what to do.
    """
    chosen: dict[str, tuple[str, set[str], str]] = {}
    for recipe in recipes_of(words):
        for key, class_path, arguments in _classes(Path(recipe)):
            before, known, source = chosen.get(key, (class_path, set(), recipe))
            if before != class_path:
                raise ValueError(
                    f"{source} chooses {before} for {key}, and {recipe} chooses {class_path}: arguments of the first "
                    "would leak into the second. Copy the recipe and name one class."
                )
            chosen[key] = before, known | arguments, source
    given = {option.removeprefix("--") for option, _ in _options(words)}
    for option, value in _options(words):
        key = option.removeprefix("--")
        if key not in chosen or not value or value == chosen[key][0]:
            continue
        before, arguments, source = chosen[key]
        explicit = {name for name in arguments if f"{key}.{name}" in given or f"{key}.init_args.{name}" in given}
        leaking = sorted((arguments - explicit) & _parameters(value))
        if leaking:
            raise ValueError(
                f"--{key} chooses {value}, but {', '.join(leaking)} of {source}'s {before} would leak into it: give "
                f"{', '.join(f'--{key}.{name}' for name in leaking)} too, or copy the recipe."
            )


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(option, value) of command-line words, in both spellings."""
    for i, word in enumerate(words):
        if word.startswith("-"):
            option, separator, value = word.partition("=")
            following = words[i + 1] if i + 1 < len(words) and not separator else ""
            yield option, value or ("" if following.startswith("--") else following)


def _parameters(class_path: str) -> set[str]:
    """The arguments of a class or function; none if there is no such thing (the parser says so better)."""
    module, _, name = class_path.rpartition(".")
    try:
        return set(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
    except (ImportError, AttributeError, ValueError, TypeError):
        return set()


def _classes(path: Path) -> Iterator[tuple[str, str, set[str]]]:
    """Every (dotted key, class path, names of its arguments) of a YAML file and of the files that it picks."""
    if path.is_file():
        yield from _walk(yaml.safe_load(path.read_text()), "", path.parent)


def _walk(value: Any, key: str, folder: Path) -> Iterator[tuple[str, str, set[str]]]:
    if isinstance(value, str) and value.endswith((".yaml", ".yml")) and (folder / value).is_file():
        picked = folder / value
        yield from _walk(yaml.safe_load(picked.read_text()), key, picked.parent)
    elif isinstance(value, dict):
        if "class_path" in value:
            yield key, value["class_path"], set(value.get("init_args") or {})
        for name, item in value.items():
            inner = key if name == "init_args" else f"{key}.{name}" if key else str(name)
            if name != "class_path":
                yield from _walk(item, inner, folder)
