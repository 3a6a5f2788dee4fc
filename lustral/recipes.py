"""Recipes: YAML files that pick one file out of each group of ``configs/``."""

import importlib
import inspect
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from lustral.complaints import no_such_class, no_such_option

# A dotted name whose last part is capitalised or a loader: what a class path looks like in this project.
_CLASS_PATH = re.compile(r"^[a-z_][\w]*(\.[a-z_]\w*)*\.([A-Z]\w*|load_\w+)$")


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


def recipes_of(words: Sequence[str]) -> list[str]:
    """The files that command-line words give with -c or --config."""
    return [value for option, value in _options(words) if option in ("-c", "--config")]


def check_recipes(words: Sequence[str]) -> None:
    """Refuse broken files, classes and options inside the recipes, and say in which file they stand.

    The parser finds them too, but its report of a file that another one picks does not hold the cause.

    Raises:
        ValueError: naming the file, what is wrong in it, and what it might have meant.
    """
    for recipe in recipes_of(words):
        if not Path(recipe).is_file():
            raise ValueError(
                f"There is no recipe {recipe} (looked in {Path.cwd()}); see configs/train and configs/eval."
            )
        for part in _parts(Path(recipe)):
            problem = part.problem()
            if problem:
                raise ValueError(f"{part.source}: {problem}")


def resets(words: Sequence[str]) -> list[str]:
    """Words that let what is chosen for a part take the whole place of what was there.

    The parser keeps the first choice's options and hands them to the second where their names agree, without a word: a
    purifier with another one's noise level, say. So options that the second choice leaves out are given their defaults
    here. A layer that names the class which is there already (or none) only changes options, and resets nothing.

    Raises:
        ValueError: if an option has no default that could be written down; it names both files and what to do.
    """
    given = {option.removeprefix("--") for option, _ in _options(words)}
    chosen: dict[str, _Part] = {}
    found: dict[str, Any] = {}
    for recipe in recipes_of(words):
        for part in _parts(Path(recipe)):
            before = chosen.get(part.key, part)
            if before.class_path != part.class_path:
                found |= part.in_the_place_of(before)
                before = part
            chosen[part.key] = replace(part, options=before.options | part.options)
            for name in part.options:
                found.pop(f"{part.key}.{name}", None)
    for option, value in _options(words):
        key = option.removeprefix("--")
        for part in _walk(value, key, Path(), Path("the command line")) if key.startswith(("model", "data")) else ():
            before = chosen.get(part.key, part)
            if value == before.class_path:
                continue
            named = {name for name in before.options if {f"{part.key}.{name}", f"{part.key}.init_args.{name}"} & given}
            found |= part.in_the_place_of(replace(before, options=before.options - named))
            chosen[part.key] = part
            for name in part.options:
                found.pop(f"{part.key}.{name}", None)
    return [word for key, default in found.items() if key not in given for word in (f"--{key}", _in_yaml(default))]


def _in_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")


@dataclass(frozen=True)
class _Part:
    """A class that a file chooses: its dotted key, its path, the options given to it, and the file."""

    key: str
    class_path: str
    options: frozenset[str]
    source: Path

    @property
    def parameters(self) -> set[str]:
        """The arguments of the class or function; none if there is no such thing."""
        try:
            return set(inspect.signature(imported(self.class_path)).parameters)
        except (ImportError, AttributeError, ValueError, TypeError):
            return set()

    def in_the_place_of(self, before: "_Part") -> dict[str, Any]:
        """The defaults, by dotted key, of options that only the part before was given and this one has too."""
        leaking = sorted((before.options & self.parameters) - self.options)
        defaults = {}
        for name in leaking:
            default = inspect.signature(imported(self.class_path)).parameters[name].default
            if not isinstance(default, (bool, int, float, str, type(None))):
                raise ValueError(
                    f"{self.source} chooses {self.class_path} for {self.key} in the place of {before.class_path} in "
                    f"{before.source}, whose {name} would leak into it: give --{self.key}.{name}."
                )
            defaults[f"{self.key}.{name}"] = default
        return defaults

    def problem(self) -> str | None:
        """What is wrong with the class or its options, in a sentence."""
        if not self.class_path:
            return f"{self.key or 'the file'} is empty; it needs a class_path."
        try:
            imported(self.class_path)
        except (ImportError, AttributeError, ValueError):
            return no_such_class(self.class_path)
        wrong = sorted(self.options - self.parameters)
        return no_such_option(self.class_path, wrong[0]) if wrong else None


def imported(class_path: str) -> Any:
    """The class or function of a dotted name."""
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(option, value) of command-line words, in both spellings."""
    for i, word in enumerate(words):
        if word.startswith("-"):
            option, separator, value = word.partition("=")
            following = words[i + 1] if i + 1 < len(words) and not separator else ""
            yield option, value or ("" if following.startswith("--") else following)


def _parts(path: Path) -> Iterator[_Part]:
    """Every class that a YAML file and the files that it picks choose."""
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
            yield from _walk(content, "", path.parent, path)
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


def _walk(value: Any, key: str, folder: Path, source: Path, pickers: tuple[Path, ...] = ()) -> Iterator[_Part]:
    """``pickers`` are the files on the way from the recipe to ``source``."""
    if isinstance(value, str):
        if value.endswith((".yaml", ".yml")) and (folder / value).is_file():
            picked = Path(os.path.normpath(folder / value))
            if picked.resolve() in {path.resolve() for path in (*pickers, source)}:
                raise ValueError(
                    f"{source} picks {picked} for {key}, which leads back to itself: pick another file there."
                )
            content = _read(picked)
            if content is None:
                yield _Part(key, "", frozenset(), picked)
            yield from _walk(content, key, picked.parent, picked, (*pickers, source))
        elif value.endswith((".yaml", ".yml")):
            raise ValueError(
                f"{source} picks {value} for {key}, and there is no such file (looked in {folder.resolve()})."
            )
        elif _CLASS_PATH.match(value):
            yield _Part(key, value, frozenset(), source)
    elif isinstance(value, dict):
        if "class_path" in value:
            yield _Part(key, *_class_and_options(value, key, source), source)
        for name, item in value.items():
            inner = key if name == "init_args" else f"{key}.{name}" if key else str(name)
            if name != "class_path":
                yield from _walk(item, inner, folder, source, pickers)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _walk(item, f"{key}[{i}]", folder, source, pickers)


def _class_and_options(value: dict[str, Any], key: str, source: Path) -> tuple[str, frozenset[str]]:
    """The class path of a part and the names of its options."""
    class_path, options = value["class_path"], value.get("init_args") or {}
    if not isinstance(class_path, str):
        raise ValueError(f"{source}: class_path of {key} is {class_path!r}; it must be the dotted name of a class.")
    if not isinstance(options, dict):
        raise ValueError(f"{source}: init_args of {key} is {options!r}; it must be options with their values.")
    return class_path, frozenset(map(str, options))
