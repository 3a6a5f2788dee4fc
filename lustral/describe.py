"""Components as data: a component's constructor arguments, read from its attributes of the same names.

The constructor is the config, so a component stores every constructor argument as an attribute of the same name. From
these come the architecture in a weights file and the fingerprint of an evaluation, whether the component was made from
YAML or in Python.
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
    """The constructor arguments of ``component`` by name, without those in ``leave_out``; values are not converted.

    Raises:
        ValueError: if an argument is not stored as an attribute of the same name.
    """
    parameters = inspect.signature(type(component)).parameters.values()
    # A class without a constructor shows nn.Module's *args and **kwargs, which take nothing.
    names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    missing = [name for name in names if not hasattr(component, name)]
    if missing:
        raise ValueError(
            f"{type(component).__name__} does not keep its constructor argument(s) {', '.join(missing)} as "
            "attributes of the same names, so its results could not be told from another's: store them."
        )
    return {name: getattr(component, name) for name in names if name not in set(leave_out)}


def rebuilt(component: Any, changes: Mapping[str, Any], always: tuple[type, ...] = ()) -> Any:
    """A new ``component`` with some constructor arguments changed; arguments that are not named are shared.

    Args:
        component: stores its arguments as attributes of the same names.
        changes: new values by name. A dotted name ("purifier.num_steps") changes an argument of an inner component,
            which is then rebuilt too; elements of a list are named by number ("purifiers.0.num_steps"). Values are
            plain data, not components with a class path.
        always: types of arguments that are rebuilt even if nothing in them changes.

    Raises:
        ValueError: if a name is unknown, a network would have to be rebuilt, or the class refuses the values.
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

    A network with weights is described by its class, its architecture and a hash of its weights, never by the path of
    the weights file; a class from outside the package also by a hash of its source (see `foreign_source`).
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    described = {"class": type(value).__name__, "module": type(value).__module__} | foreign_source(type(value))
    if hasattr(value, "described"):  # read from a file: described by its content, not its path
        return described | describe(value.described())
    described |= describe(arguments(value, ("weights",)))
    if isinstance(value, nn.Module) and (own := _own_state(value)):
        described["weights_sha256"] = state_sha256(own)
    return described


_OWN = {"lustral", "lightning_modules", "datamodules", "callbacks", "cli"}
_INSTALLED = {"site-packages", "dist-packages"}


def foreign_source(kind: type) -> dict[str, str]:
    """ "source_sha256" of a class from outside the package: a hash of its module's source and of the modules that this
    one uses, installed packages left out. So an edited purifier is another one, even with equal arguments.

    For the package's own classes the dict is empty: a version of the package that changes results changes the schema of
    the fingerprint. A class that was typed into a session has no source file: "code_sha256" then hashes its bytecode.
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
                inspect.getsource(base)  # raises if the module has a file but the class is not in it
        for _, module in sorted(modules.items()):
            digest.update(inspect.getsource(module).encode() + b"\0")
    except (OSError, TypeError):
        return {"source": "unknown", "code_sha256": _code_sha256(kind)}
    return {"source_sha256": digest.hexdigest()}


def function_source(function: Any) -> dict[str, str]:
    """The name of a function, or of the class of a callable object, and a hash of its code."""
    named = function if hasattr(function, "__qualname__") else type(function)
    code = getattr(function, "__code__", None)
    digest = _code_sha256(type(function)) if code is None else hashlib.sha256(_compiled(code)).hexdigest()
    return {"name": f"{named.__module__}.{named.__qualname__}", "code_sha256": digest}


def _is_foreign(module: ModuleType) -> bool:
    if module.__name__.partition(".")[0] in _OWN:
        return False
    if module.__name__ == "__main__":
        return True
    file = getattr(module, "__file__", None)  # None for built-in modules and namespace packages
    if file is None or _INSTALLED & set(Path(file).parts):
        return False
    return not any(Path(file).is_relative_to(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))


def _code_sha256(kind: type) -> str:
    """A hash of the compiled methods of a class and of its bases from outside the package."""
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
    """A function's bytecode, names and constants, without its file and line numbers."""
    constants = [_compiled(c) if isinstance(c, CodeType) else repr(c).encode() for c in code.co_consts]
    return b"\0".join([code.co_code, repr(code.co_names).encode(), *constants])


def _own_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of ``module``, without that of modules among its constructor arguments (described by themselves)."""
    parts = [part for part in arguments(module).values() if isinstance(part, nn.Module)]
    elsewhere = {id(tensor) for part in parts for tensor in part.state_dict(keep_vars=True).values()}
    return {name: t for name, t in module.state_dict(keep_vars=True).items() if id(t) not in elsewhere}


def weights_sha256(module: nn.Module) -> str:
    """A hash of the names, shapes, dtypes and values in a module's state: equal for equal weights on any device."""
    return state_sha256(module.state_dict())


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """A hash of named tensors (see `weights_sha256`)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
