"""Objects as data: a component's constructor arguments, read back from the attributes of the same names.

The constructor is the config, so a component keeps every argument under its own name. That one rule gives the
architecture stored in a weights file and the fingerprint of an evaluation, from a YAML file and from Python alike.
"""

import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn


def arguments(component: object, leave_out: Iterable[str] = ()) -> dict[str, Any]:
    """The constructor arguments of ``component`` by name, as they are."""
    parameters = inspect.signature(type(component)).parameters.values()
    # nn.Module's own *args and **kwargs take nothing; a public constructor here has none of its own.
    names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    missing = [name for name in names if not hasattr(component, name)]
    if missing:
        raise ValueError(
            f"{type(component).__name__} does not keep its constructor argument(s) {', '.join(missing)} as "
            "attributes of the same names, so its results could not be told from another's: store them."
        )
    return {name: getattr(component, name) for name in names if name not in set(leave_out)}


def rebuilt(component: Any, changes: Mapping[str, Any], always: tuple[type, ...] = ()) -> Any:
    """``component`` made anew with other values of some constructor arguments; what is not named is shared.

    Args:
        component: keeps its arguments as attributes of the same names.
        changes: by name; a dotted name ("purifier.num_steps") changes an argument of an argument, which is then made
            anew as well; parts of a list are called by their numbers ("purifiers.0.num_steps"). Values are plain data:
            nothing can be put in the place of a component.
        always: kinds of arguments that are made anew in any case.

    Raises:
        ValueError: if a name is not known, a network would have to be made anew, or the class refuses the values.
    """
    name_of, listed = type(component).__name__, _is_list(component)
    if component is None or isinstance(component, (bool, int, float, str)):
        raise ValueError(f"{component!r} is plain and has no argument {next(iter(changes))!r} to change.")
    given = {str(k): part for k, part in enumerate(component)} if listed else arguments(component)
    own, inner = dict[str, Any](), dict[str, dict[str, Any]]()
    for key, value in changes.items():
        if not isinstance(key, str):
            raise ValueError(f"{key!r} is no name of an argument of {name_of}; it has {', '.join(given) or 'none'}.")
        name, _, rest = key.partition(".")
        if name not in given:
            raise ValueError(f"{name_of} has no argument {name!r} to change; it has {', '.join(given) or 'none'}.")
        if isinstance(value, Mapping) and "class_path" in value:
            raise ValueError(
                f"{key} is to become a {value['class_path']}, but only plain values can be changed: give the whole "
                "component with a class path."
            )
        if rest:
            inner.setdefault(name, {})[rest] = value
        else:
            own[name] = value
    if both := sorted(own.keys() & inner.keys()):
        raise ValueError(
            f"{both[0]} is changed as a whole and in part ({both[0]}.{next(iter(inner[both[0]]))}): choose one."
        )
    for name, value in given.items():
        if name in inner and isinstance(value, nn.Module) and not isinstance(value, always):
            raise ValueError(
                f"{name}.{next(iter(inner[name]))} is an argument of a network, which is shared and not made anew: "
                "change something else, or give the whole component with a class path."
            )
        anew = any(isinstance(part, always) for part in value) if _is_list(value) else isinstance(value, always)
        if name not in own and (name in inner or anew):
            own[name] = rebuilt(value, inner.get(name, {}), always)
    if listed:
        return type(component)({**given, **own}.values())
    try:
        return type(component)(**{**given, **own})
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{name_of} cannot take {dict(changes)} ({error}): give values of the right kind.") from error


def _is_list(value: Any) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    return isinstance(value, (list, tuple)) and not hasattr(value, "_fields")


def describe(value: Any) -> Any:
    """``value`` as plain data (numbers, strings, lists, dicts): components by class and arguments.

    A network with weights is described by its class, its architecture and a hash of its weights, never by the
    path they came from; a class from outside the package also by its source (see `foreign_source`).
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    described = {"class": type(value).__name__, "module": type(value).__module__} | foreign_source(type(value))
    if hasattr(value, "described"):  # something read from a file: its content counts, not its path
        return described | describe(value.described())
    described |= describe(arguments(value, ("weights",)))
    if isinstance(value, nn.Module) and (own := _own_state(value)):
        described["weights_sha256"] = state_sha256(own)
    return described


_OWN = {"lustral", "lightning_modules", "datamodules", "callbacks", "cli"}
_INSTALLED = {"site-packages", "dist-packages"}


def foreign_source(kind: type) -> dict[str, str]:
    """ "source_sha256" of a class from outside the package: of its module's file and of those that this one uses, but
    for installed packages. An edited purifier is another one, whatever its arguments.

    Of the package's own classes nothing: a version of it that changes results says so by the fingerprint's schema. A
    class typed into a session has no file: "code_sha256" is then of what was compiled.
    """
    modules: dict[str, ModuleType] = {}
    waiting = [sys.modules.get(base.__module__) for base in kind.__mro__]
    while waiting:
        module = waiting.pop()
        if module is None or module.__name__ in modules or not _is_foreign(module):
            continue
        modules[module.__name__] = module
        for value in vars(module).values():
            name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            waiting.append(sys.modules.get(name) if isinstance(name, str) else None)
    if not modules:
        return {}
    digest = hashlib.sha256()
    try:
        for base in kind.__mro__:
            if base.__module__ in modules:
                inspect.getsource(base)  # its module may have a file, and not this class in it
        for _, module in sorted(modules.items()):
            digest.update(inspect.getsource(module).encode() + b"\0")
    except (OSError, TypeError):
        return {"source": "unknown", "code_sha256": _code_sha256(kind)}
    return {"source_sha256": digest.hexdigest()}


def _is_foreign(module: ModuleType) -> bool:
    if module.__name__.partition(".")[0] in _OWN:
        return False
    if module.__name__ == "__main__":
        return True
    file = getattr(module, "__file__", None)  # none: built in, or a folder without code
    if file is None or _INSTALLED & set(Path(file).parts):
        return False
    return not any(Path(file).is_relative_to(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))


def _code_sha256(kind: type) -> str:
    """A hash of the methods of a class, its own ones and those of bases from outside the package, as compiled."""
    digest = hashlib.sha256()
    for base in kind.__mro__:
        module = sys.modules.get(base.__module__)
        if module is not None and not _is_foreign(module):
            continue
        for name, value in sorted(vars(base).items()):
            value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            code = getattr(value, "__code__", None)
            digest.update(name.encode() + (b"" if code is None else _compiled(code)))
    return digest.hexdigest()


def _compiled(code: CodeType) -> bytes:
    """What a function does, without where it stands."""
    constants = [_compiled(c) if isinstance(c, CodeType) else repr(c).encode() for c in code.co_consts]
    return b"\0".join([code.co_code, repr(code.co_names).encode(), *constants])


def _own_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of ``module`` that none of its constructor arguments holds (those are described themselves)."""
    parts = [part for part in arguments(module).values() if isinstance(part, nn.Module)]
    elsewhere = {id(tensor) for part in parts for tensor in part.state_dict(keep_vars=True).values()}
    return {name: t for name, t in module.state_dict(keep_vars=True).items() if id(t) not in elsewhere}


def weights_sha256(module: nn.Module) -> str:
    """A hash of every name, shape, type and value of a module's state: equal for equal weights on any device."""
    return state_sha256(module.state_dict())


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """A hash of named tensors (see `weights_sha256`)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
