"""What recipes and the command line choose: classes that exist, with options that they have, and with no others'."""

import dataclasses
import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from lustral.recipes import Part, imported, in_yaml, options_of, parts_of, walk

_GROUPS = ("classifier", "purifier", "attack", "threat", "protocol")  # folders of configs/ with parts of an evaluation
_WORDS = Path("the command line")


def check_choices(words: Sequence[str], known: Mapping[str, str] | None = None) -> None:
    """Refuse broken files, classes that do not exist, options that they do not have, and parts that must be given and
    are not: in recipes, in the files that they pick, and on the command line.

    The parser finds them too, but in words of its own, and the cause is not among them where one file picks another.

    Args:
        words: of the command line.
        known: classes of parts that nobody chooses, by key, as the trainer's.

    Raises:
        ValueError: naming the file or the option, what is wrong, and what it might have meant.
    """
    choices = _Choices({key: Part(key, path, frozenset(), _WORDS) for key, path in (known or {}).items()})
    options = list(options_of(words))
    for key, value in options:
        if key == "config":
            if not Path(value).is_file():
                raise ValueError(
                    f"There is no recipe {value} (looked in {Path.cwd()}); see configs/train and configs/eval."
                )
            for part in parts_of(Path(value)):
                choices.take(part)
        elif key.split(".")[0] in ("model", "data", "trainer"):
            choices.hear(key, value)
    if not any(key in ("print_config", "h") or key.split(".")[-1] == "help" for key, _ in options):
        choices.check_completeness()


def resets(words: Sequence[str]) -> list[str]:
    """Words that let what is chosen for a part take the whole place of what was there.

    The parser keeps the first choice's options and hands them to the second where their names agree, without a word: a
    purifier with another one's noise level, say. So options that the second choice leaves out are given their defaults
    here. A layer that writes out the class which is there already (or none) only changes options, and resets nothing.

    Raises:
        ValueError: if an option has no default that could be written down; it names both files and what to do.
    """
    options = list(options_of(words))
    given = {key for key, _ in options}
    chosen: dict[str, Part] = {}
    found: dict[str, Any] = {}
    for key, value in options:  # in the parser's order
        for part, whole in _chosen_by(key, value):
            before = chosen.get(part.key, part)
            if part.class_path is None:
                part = replace(part, class_path=before.class_path)
            if part.class_path is None:
                continue
            if whole or before.class_path != part.class_path:
                named = {name for name in before.options if f"{part.key}.{name}" in given}
                found |= _in_the_place_of(replace(before, options=before.options - named), part)
                before = part
            chosen[part.key] = replace(part, options=before.options | part.options)
            for name in part.options:
                found.pop(f"{part.key}.{name}", None)
    return [word for key, default in found.items() if key not in given for word in (f"--{key}", in_yaml(default))]


def _chosen_by(key: str, value: str) -> Iterator[tuple[Part, bool]]:
    """The parts that an option of the command line chooses, and whether each is to take the whole place of what was
    there: unless a layer names its class only to change options of it, or a word repeats the class. (The parser
    exchanges lists as a whole by itself.)"""
    if key == "config":
        found = ((part, part.source != Path(value)) for part in parts_of(Path(value)))
    elif key.startswith(("model", "data")):
        found = ((part, value != part.class_path) for part in walk(_value(value), key, Path(), _WORDS))
    else:
        return
    yield from ((part, whole) for part, whole in found if "[" not in part.key)


def _in_the_place_of(before: Part, part: Part) -> dict[str, Any]:
    """The defaults, by dotted key, of options that only the part ``before`` was given and ``part`` has too."""
    parameters = _parameters(part) or {}
    defaults = {}
    for name in sorted((before.options & parameters.keys()) - part.options):
        default = parameters[name].default
        if not isinstance(default, (bool, int, float, str, type(None))):
            raise ValueError(
                f"{part.source} chooses {part.class_path} for {part.key} in the place of {before.class_path} in "
                f"{before.source}, whose {name} would leak into it: give --{part.key}.{name}."
            )
        defaults[f"{part.key}.{name}"] = default
    return defaults


def _value(word: str) -> Any:
    """A word of the command line, where it is written as options or a list; the parser complains of broken ones."""
    try:
        return yaml.safe_load(word) if word.startswith(("{", "[")) else word
    except yaml.YAMLError:
        return word


@dataclass
class _Choices:
    """What is chosen for each part so far, by dotted key, and every key that was given something.

    It goes on in the parser's order, for an option is one of the class that is there when it is given.
    """

    chosen: dict[str, Part]
    given: set[str] = field(default_factory=set)

    def take(self, part: Part) -> None:
        """Check what a file or a word says of a part, and remember it."""
        where = part.key if part.source == _WORDS else part.source
        if part.class_path is not None:
            if not part.options and _is_plain(self.hint(part.key)):
                return  # a word that looks like a class
            before = self.chosen.get(part.key)
            if before is None or before.class_path != part.class_path:
                self.forget(part.key)
            if part.source == _WORDS and "." not in part.class_path:
                return  # a name without its module, which the parser may know
            if problem := _problem(part):
                raise ValueError(f"{where}: {problem}")
            self.chosen[part.key] = part
        elif (known := self.at(part.key)) and (problem := _problem(replace(known, options=part.options))):
            raise ValueError(f"{where}: {problem}")
        self.given |= {f"{part.key}.{name}" for name in part.options} | {part.key}

    def hear(self, key: str, value: str) -> None:
        """Check an option of the command line and what it chooses, and remember that."""
        appended, key = key.endswith("+"), key.removesuffix("+")
        names = key.split(".")
        if "dict_kwargs" in names:
            return
        if asked := names[-1] == "help":
            key = ".".join(names[:-1])
        else:
            self.given.add(key)
        self.check_option(key)
        if _is_plain(self.hint(key)):
            return
        parts = list(walk(_value(value), key, Path(), _WORDS))
        if asked or appended:  # a question, or an element of a list: what stands there stays
            for part in parts:
                replace(self, chosen=dict(self.chosen), given=set()).take(part)
            return
        if all(part.key != key for part in parts):
            self.forget(key)
        if value in ("null", "None") and type(None) not in get_args(self.hint(key)):
            self.given = {other for other in self.given if not f"{other}.".startswith(f"{key}.")}
        for part in parts:
            self.take(part)

    def check_option(self, key: str) -> None:
        """Refuse an option that the part it belongs to does not have."""
        owner, name = self.owner(key)
        if owner and (problem := _problem(replace(owner, options=frozenset([name])))):
            raise ValueError(f"{owner.key}: {problem}")

    def check_completeness(self) -> None:
        """Refuse a chosen part without something that it must be given. Elements of lists are the parser's."""
        for key, part in self.chosen.items():
            if "[" in key:
                continue
            required = _required(part)[_num_to_come(self.hint(key)) if self.owner(key)[0] else 0 :]
            given = tuple(f"{other}." for other in self.given)
            missing = [name for name in required if not any(other.startswith(f"{key}.{name}.") for other in given)]
            if missing:
                raise ValueError(f"{key}: {_must_be_given(part, missing)}")

    def forget(self, key: str) -> None:
        """Nothing is known any more of a part and those inside it."""
        for other in [other for other in self.chosen if other == key or other.startswith((f"{key}.", f"{key}["))]:
            del self.chosen[other]

    def at(self, key: str) -> Part | None:
        """What is known of a part: the class that was chosen, or the one that its owner always has there."""
        owner, name = self.owner(key)
        return self.chosen.get(key) or (_fixed(owner, name) if owner and key == f"{owner.key}.{name}" else None)

    def owner(self, key: str) -> tuple[Part | None, str]:
        """The innermost known part that an option belongs to, and the option's name there."""
        names = key.split(".")
        for i in range(len(names) - 1, 0, -1):
            part = self.chosen.get(".".join(names[:i]))
            if part:
                while i + 1 < len(names) and (inner := _fixed(part, names[i])):
                    part, i = inner, i + 1
                return part, names[i]
        return None, key

    def hint(self, key: str) -> Any:
        """The type of what may be given for ``key``; None if it is not known."""
        owner, name = self.owner(key)
        return _hints(owner).get(name) if owner and key == f"{owner.key}.{name}" else None


# Classes ---------------------------------------------------------------------------------------------------


def _parameters(part: Part) -> Mapping[str, inspect.Parameter] | None:
    """The arguments of a part's class or function; None if they cannot be known."""
    try:
        return inspect.signature(imported(part.class_path or "")).parameters
    except (ImportError, AttributeError, ValueError, TypeError):
        return None


def _required(part: Part) -> list[str]:
    """The arguments that have no default."""
    every = (_parameters(part) or {}).values()
    return [p.name for p in every if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _hints(part: Part) -> dict[str, Any]:
    try:
        made_by = imported(part.class_path or "")
        return get_type_hints(made_by.__init__ if isinstance(made_by, type) else made_by)
    except (ImportError, AttributeError, ValueError, TypeError, NameError):
        return {}


def _fixed(owner: Part, name: str) -> Part | None:
    """A part whose class is not chosen: an argument that is a dataclass, as the threat model."""
    kind = _hints(owner).get(name)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)) or "." in kind.__qualname__:
        return None
    return Part(f"{owner.key}.{name}", f"{kind.__module__}.{kind.__qualname__}", frozenset(), owner.source)


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _is_plain(hint: Any) -> bool:
    """Whether only numbers, words or paths may be given, and no part."""
    plain = (bool, int, float, str, Path, type(None))
    return all(kind in plain or get_origin(kind) is Literal for kind in _kinds(hint))


def _num_to_come(hint: Any) -> int:
    """How many arguments are handed over later to a part that makes something, as an optimiser from parameters; all of
    them where the type does not say that, nor that it is an object of a class."""
    for kind in _kinds(hint):
        if get_origin(kind) is Callable:
            taken = (*get_args(kind), None)[0]
            return len(taken) if isinstance(taken, list) else sys.maxsize
        if isinstance(kind, type) and get_origin(kind) is None and kind is not type(None):
            return 0
    return sys.maxsize


def _problem(part: Part) -> str | None:
    """What is wrong with a part's class or the names of its options, in a sentence."""
    class_path = part.class_path or ""
    try:
        imported(class_path)
    except (ImportError, AttributeError, ValueError):
        return _no_such_class(class_path)
    parameters = _parameters(part)
    if parameters is None or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    wrong = sorted({name.partition(".")[0].removesuffix("+") for name in part.options} - parameters.keys())
    return _no_such_option(class_path, list(parameters), wrong[0]) if wrong else None


def _no_such_option(class_path: str, options: list[str], option: str) -> str:
    close = difflib.get_close_matches(option, options, 1)
    hint = f"did you mean {close[0]}?" if close else f"its options are {', '.join(options)}."
    return f"{class_path.rpartition('.')[2]} has no option {option}; {hint if options else 'it has none.'}"


def _no_such_class(class_path: str) -> str:
    module, _, name = class_path.rpartition(".")
    if not module:
        return f"{class_path} is no class: give its whole dotted name, as in torch.optim.AdamW."
    try:
        public = getattr(importlib.import_module(module), "__all__", [])
    except (ImportError, ValueError):
        return f"there is no module {module!r}, of which {class_path} should be a class."
    close = difflib.get_close_matches(name, public, 1)
    hint = f"; did you mean {module}.{close[0]}?" if close else f"; it has {', '.join(public)}." if public else "."
    return f"{module} has no class {name}{hint}"


def _must_be_given(part: Part, names: list[str]) -> str:
    class_path = part.class_path or ""
    told = f"{class_path.rpartition('.')[2]} must be given {', '.join(names)}"
    how = " ".join(f"--model.{name} configs/{name}/FILE.yaml" for name in names if name in _GROUPS)
    return f"{told}: {how}." if how and class_path.endswith("Evaluation") else f"{told}."
