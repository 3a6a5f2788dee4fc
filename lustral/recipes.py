"""Recipes: YAML files that pick one file out of each group of ``configs/``, and words that vary them."""

import importlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

# A dotted name whose last part is capitalised or a loader: what a class path looks like in this project.
_CLASS_PATH = re.compile(r"^[a-z_][\w]*(\.[a-z_]\w*)*\.([A-Z]\w*|load_\w+)$")

_OF_THE_PARSER = ("class_path", "init_args", "dict_kwargs")  # keys of a part that are none of its options


def run_folder(recipes: Sequence[str | Path]) -> Path:
    """Where a recipe's results go: ``runs/<group>/<name>`` for ``configs/<group>/<name>.yaml``.

    Of several layered files the first one of group ``train``, ``eval`` or ``reference`` names the run, else the first.
    """
    paths = [Path(path) for path in recipes]
    named = [path for path in paths if path.resolve().parent.name in ("train", "eval", "reference")] or paths
    if not named:
        return Path("runs") / "unnamed"
    return Path("runs") / named[0].resolve().parent.name / named[0].stem


def check_folder(folder: str | Path) -> None:
    """Try whether the run folder can be written, or made and written: asked before any work is done, and leaving
    nothing behind, since the run may yet be refused.

    Raises:
        OSError: if it cannot be written.
    """
    there = Path(folder)
    try:
        while not there.exists():
            there = there.parent
        with tempfile.TemporaryFile(dir=there):
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
        else:
            for part in value if isinstance(value, list) else [value]:
                if hasattr(part, "__dict__"):
                    forget_weights(part)


@dataclass(frozen=True)
class Part:
    """What a file or a word says of one part: its dotted key, the class that it chooses (None where it only changes
    options), the names of the options that it gives, and where it stands."""

    key: str
    class_path: str | None
    options: frozenset[str]
    source: Path


def in_yaml(value: Any) -> str:
    """A value as one word of the command line, which is read as YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")


def imported(class_path: str) -> Any:
    """The class or function of a dotted name."""
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def options_of(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(option, value) of command-line words, in both spellings.

    Each option is one dotted key, without dashes and without the parser's own names in it (init_args, class_path);
    "config" for a recipe.
    """
    for i, word in enumerate(words):
        if word.startswith("-"):
            option, separator, value = word.partition("=")
            following = words[i + 1] if i + 1 < len(words) and not separator else ""
            key = "config" if option == "-c" else option.lstrip("-").replace(".init_args.", ".")
            key = key.removesuffix(".class_path")
            yield key, value or ("" if following.startswith("--") else following)


def parts_of(path: Path) -> Iterator[Part]:
    """What a YAML file and the files that it picks say of every part."""
    if path.is_file():
        content = _read(path)
        if not isinstance(content, dict):
            raise ValueError(f"{path} is no recipe: it holds {'nothing' if content is None else 'no keys'}.")
        for group in ("trainer", "model", "data"):
            if not isinstance(content.get(group, {}), (dict, str, type(None))):
                raise ValueError(
                    f"{path}: {group} is {content[group]!r}; it must be options with their values, or a file of them."
                )
        try:
            yield from walk(content, "", path.parent, path)
        except RecursionError as error:
            raise ValueError(f"{path} nests too deeply, or an anchor in it holds itself: write it flat.") from error


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no text file (in UTF-8), and so no recipe: name another, or save it so."
        ) from error
    except RecursionError as error:
        raise ValueError(f"{path} nests too deeply: write it flat.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        raise ValueError(f"{path}{where}: {getattr(error, 'problem', None) or 'this is no YAML'}.") from error


def walk(value: Any, key: str, folder: Path, source: Path, pickers: tuple[Path, ...] = ()) -> Iterator[Part]:
    """What a value says of the part ``key`` and of those inside it: a class, a file that is picked, or options.

    Args:
        value: as YAML gives it.
        key: dotted.
        folder: where relative paths start.
        source: where the value stands.
        pickers: the files on the way from the recipe to ``source``.

    Raises:
        ValueError: if a picked file is missing or broken.
    """
    if isinstance(value, str):
        if value.endswith((".yaml", ".yml")) and (folder / value).is_file():
            picked = Path(os.path.normpath(folder / value))
            if picked.resolve() in {path.resolve() for path in (*pickers, source)}:
                raise ValueError(
                    f"{source} picks {picked} for {key}, which leads back to itself: pick another file there."
                )
            content = _read(picked)
            if content is None:
                raise ValueError(f"{picked}: {key or 'the file'} is empty; it needs a class_path.")
            yield from walk(content, key, picked.parent, picked, (*pickers, source))
        elif value.endswith((".yaml", ".yml")):
            raise ValueError(
                f"{source} picks {value} for {key}, and there is no such file (looked in {folder.resolve()})."
            )
        elif _CLASS_PATH.match(value):
            yield Part(key, value, frozenset(), source)
    elif isinstance(value, dict):
        yield _part(value, key, source)
        inside = {name: item for name, item in value.items() if name not in _OF_THE_PARSER} | (
            value.get("init_args") or {}
        )
        for name, item in inside.items():
            yield from walk(item, f"{key}.{name}" if key else str(name), folder, source, pickers)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from walk(item, f"{key}[{i}]", folder, source, pickers)


def _part(value: dict[str, Any], key: str, source: Path) -> Part:
    options = value.get("init_args") or {}
    if not isinstance(options, dict):
        raise ValueError(f"{source}: init_args of {key} is {options!r}; it must be options with their values.")
    if "class_path" not in value:
        return Part(
            key,
            None,
            frozenset(str(name) for name in value if name not in _OF_THE_PARSER) | {*map(str, options)},
            source,
        )
    class_path = value["class_path"]
    if not isinstance(class_path, str):
        raise ValueError(f"{source}: class_path of {key} is {class_path!r}; it must be the dotted name of a class.")
    return Part(key, class_path, frozenset(map(str, options)), source)
