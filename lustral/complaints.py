"""From a config parser's report on every type that did not fit, to the one sentence that the user needs."""

import difflib
import importlib
import inspect
import re

_NOISE = re.compile(
    r"^(Does not validate against any of the Union|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>|$)"
)
_KEY = re.compile(r'^Parser key "([^"]+)":\s*(.*)$')
_CLASS = re.compile(r"^Problem with given class_path '([^']+)':\s*(.*)$")
_OPTION = re.compile(r"^Option '([^']+)' is not accepted")
_MISSING_NAME = re.compile(r"module '([^']+)' has no attribute '([^']+)'")
_LITERAL = re.compile(r"^Expected a typing\.Literal\[([^\]]+)\](?:\. Got value: | but got |.*?Given value: ?)?(.*)$")
_UNKNOWN = re.compile(r"^unrecognized arguments: (.+)$")
_PATH = re.compile(r"^Expected a path but (\S+) either not accessible or invalid")
# About an optimiser or a schedule, whose first argument is still to come: the cause, between two words of its own.
_CALLABLE = re.compile(
    r"^Type typing\.Callable\[.*?\] expects a function or a callable class: (.*?)(?:\. Got value: .*)?$"
)
_MADE_OF = re.compile(r"\. Got value: Namespace\(class_path='([^']+)'.*$")
_GROUPS = ("classifier", "purifier", "attack", "threat", "protocol")  # folders of configs/ with parts of an evaluation
_REQUIRED = re.compile(r"^the following arguments are required: (.+)$")
_NO_PATH = re.compile(r"^Expected a dot import path string: (.+)$")
_TYPE = re.compile(r"^Expected a <class '(\w+)'>(?:\. Got value: (.*))?$")
_GIVEN = re.compile(r"^Given value: (.*)$")
_WORKER = re.compile(r"^Caught (\w+) in |^-- Process \d+ terminated with the following error:")
_RAISED = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:: |$)")  # the end of a traceback
_DIED = re.compile(r"DataLoader worker .* (?:exited unexpectedly|is killed by signal)")
_MEMORY = re.compile(r"can't allocate memory|Unable to allocate|not enough memory|out of memory", re.IGNORECASE)


_WHERE = "LUSTRAL_TRACEBACK=1 shows where."


def plain(error: BaseException) -> str:
    """One sentence for an error that a config or a component raised; other errors' own words are kept."""
    if _DIED.search(str(error)):
        return (
            "A process that loads images died without a word, mostly for want of memory: lower --data.num_workers or "
            "--data.batch_size, or give it more shared memory."
        )
    lines = [line.strip().removeprefix("- ").strip() for line in _cause(str(error)).splitlines()]
    if len(lines) == 1:
        return _mended(lines[0], "")
    keys: list[str] = []
    class_path, causes = "", []
    made_of: list[str] = []
    if any(_CALLABLE.match(line) for line in lines):
        made_of = [match[1] for line in lines if (match := _MADE_OF.search(line))]
        lines = [_CALLABLE.sub(r"\1", _MADE_OF.sub("", line)) for line in lines]
    given = next((match[1] for line in lines if (match := _GIVEN.match(line))), "")
    for line in lines:
        if _NOISE.match(line):
            continue
        if match := _KEY.match(line):
            keys.append(match[1])
            line = match[2]
        elif match := _CLASS.match(line):
            class_path, line = match[1], match[2]
        if line:
            causes.append(line)
    # A path is only one of the things that a component may be; where something else was tried, that failed later.
    told = [cause for cause in causes if not _PATH.match(cause)] or causes or [str(error)]
    where = ".".join(keys)
    if (match := _TYPE.match(told[0])) and match[2] is None and given:
        told[0] = f"Expected a <class '{match[1]}'>. Got value: {given}"
    return (f"{where}: " if where else "") + _mended(told[0], made_of[0] if made_of else class_path)


def _is_memory(error: BaseException) -> bool:
    """Whether it says that the memory does not suffice."""
    return isinstance(error, MemoryError) or _MEMORY.search(str(error)) is not None


def surprising(error: BaseException) -> str:
    """One sentence for an error that nobody foresaw, which hides nothing of it."""
    if _DIED.search(str(error)):
        return plain(error)
    if isinstance(error, RecursionError):
        return (
            "Something leads back to itself without end: a file that picks itself, or an object that holds itself; "
            + _WHERE
        )
    words = (_cause(str(error)).strip().splitlines() or ["without a word"])[0].rstrip(".")
    if _is_memory(error):
        return (
            f"The memory does not suffice ({words}): lower --data.batch_size, --model.rows or --data.num_workers, or "
            "choose a smaller network."
        )
    return f"This looks like a bug of Lustral or of a class of yours: {type(error).__name__}: {words}; {_WHERE}"


def _cause(text: str) -> str:
    """What was raised in another process, where ``text`` is that process's traceback; else ``text``."""
    if not _WORKER.match(text):
        return text
    lines = text.strip().splitlines()
    raised = [i for i, line in enumerate(lines) if _RAISED.match(line)]
    return "\n".join([_RAISED.sub("", lines[raised[-1]]), *lines[raised[-1] + 1 :]]) if raised else lines[-1]


def no_such_option(class_path: str, option: str) -> str:
    """The sentence for an option that a class does not have."""
    options = _options(class_path)
    close = difflib.get_close_matches(option, options, 1)
    hint = f"did you mean {close[0]}?" if close else f"its options are {', '.join(options)}."
    return f"{class_path.rpartition('.')[2]} has no option {option}; {hint}"


def no_such_class(class_path: str) -> str:
    """The sentence for a class path that leads nowhere."""
    module, _, name = class_path.rpartition(".")
    try:
        public = getattr(importlib.import_module(module), "__all__", [])
    except (ImportError, ValueError):
        return f"there is no module {module!r}, of which {class_path} should be a class."
    close = difflib.get_close_matches(name, public, 1)
    hint = f"did you mean {module}.{close[0]}?" if close else f"it has {', '.join(public)}."
    return f"{module} has no class {name}; {hint}"


def _mended(cause: str, class_path: str) -> str:
    """The cause with a remedy, where one can be told."""
    if match := _REQUIRED.match(cause):
        parts = [name for name in match[1].split(", ") if name in _GROUPS]
        how = " ".join(f"--model.{name} configs/{name}/FILE.yaml" for name in parts)
        told = f"{class_path.rpartition('.')[2] or 'it'} must be given {match[1]}"
        return f"{told}: {how}." if how and class_path.endswith(".RobustnessEvaluation") else f"{told}."
    if match := _NO_PATH.match(cause):
        return f"{match[1]} is no class: give its whole dotted name, as in torch.optim.AdamW."
    if match := _OPTION.match(cause):
        return no_such_option(class_path, match[1])
    if match := _MISSING_NAME.search(cause):
        return no_such_class(f"{match[1]}.{match[2]}")
    if match := _UNKNOWN.match(cause):
        return f"there is no option {match[1].removeprefix('--')}; --help and --model.help CLASS list the options."
    if match := _LITERAL.match(cause):
        return f"{match[2].strip()} is not among {match[1]}."
    if match := _PATH.match(cause):
        return f"there is no file or class {match[1]}."
    if "argument after ** must be a mapping" in cause:
        return "null was given for something that has options: give its options, or leave it out."
    if match := _TYPE.match(cause):
        return f"{match[2]!r} is no {match[1]}." if match[2] else f"a value of type {match[1]} belongs here."
    return cause


def _options(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    return list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
