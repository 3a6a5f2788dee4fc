"""From a config parser's report on every type that did not fit, to the one sentence that the user needs.

Classes, options and parts that must be given are checked before (`lustral.choices`); the parser is left with values.
"""

import re

# A dotted key, or a part of one, below which the report goes on.
_KEY = re.compile(r'^Parser key "([^"]+)":\s*(.*)$')
# One thing that a value may be, and sometimes the value: a type, one of some words, or a class.
_EXPECTED = re.compile(
    r"^Expected a (?:<class '(?P<type>\w+)'>|typing\.Literal\[(?P<words>.+?)\]|dot import path string)"
    r"(?:(?:\. Got value)?: (?P<given>.*))?$"
)
# What is said around the cause where an optimiser or a schedule is made, since its first argument is still to come.
_AROUND = re.compile(
    r"^Type typing\.Callable\[.*?\] expects a function or a callable class: |\. Got value: Namespace\(.*$"
)
# The head of a traceback from another process, and the line of it that says what was raised.
_WORKER = re.compile(r"^Caught (\w+) in |^-- Process \d+ terminated with the following error:")
_RAISED = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:: |$)")
# A process that loads images and was killed.
_DIED = re.compile(r"DataLoader worker .* (?:exited unexpectedly|is killed by signal)")
# Too little memory, as torch and numpy say it.
_MEMORY = re.compile(r"can't allocate memory|Unable to allocate|not enough memory|out of memory", re.IGNORECASE)

# Lines of a report that frame its causes.
_FRAME = ("Does not validate against any of the Union", "Subtypes:", "Errors:", "Expected a <class 'NoneType'>")
_FRAME += ("Problem with given class_path", "Given value type:")
_NO_PATH = "Expected a path but "  # only one of the things that a component may be
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
        return _told(lines, "")
    keys: list[str] = []
    causes: list[str] = []
    given = ""
    for line in lines:
        line = _AROUND.sub("", line)
        if match := _KEY.match(line):
            if causes:  # what follows is about another thing that the value could have been
                break
            keys.append(match[1])
            line = match[2]
        if line.startswith("Given value: "):
            given = given or line.removeprefix("Given value: ")
        elif line and not line.startswith((*_FRAME, _NO_PATH)):
            causes.append(line)
    where = ".".join(keys)
    return (f"{where}: " if where else "") + _told(causes or [line for line in lines if line][:1], given)


def _told(causes: list[str], given: str) -> str:
    """The first cause in a sentence; where it is a type that did not fit, together with the others that did not."""
    cause = causes[0] if causes else ""
    if "argument after ** must be a mapping" in cause:
        return "null was given for something that has options: give its options, or leave it out."
    if cause.startswith("unrecognized arguments: "):
        option = cause.removeprefix("unrecognized arguments: ").removeprefix("--")
        return f"there is no option {option}; --help and --model.help CLASS list the options."
    if not _EXPECTED.match(cause):
        return cause
    expected = [match for line in causes if (match := _EXPECTED.match(line))]
    value = next((match["given"] for match in expected if match["given"]), given)
    types = list(dict.fromkeys(match["type"] for match in expected if match["type"]))
    words = ", ".join(match["words"] for match in expected if match["words"])
    if not types and not words:
        return f"{value} is no class: give its whole dotted name, as in torch.optim.AdamW."
    if not types:
        return f"{value} is not among {words}."
    return f"{value!r} is no {' or '.join(types)}{f', nor among {words}' if words else ''}."


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
