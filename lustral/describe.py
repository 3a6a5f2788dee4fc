"""Objects as data: a component's constructor arguments, read back from the attributes of the same names.

The constructor is the config, so a component keeps every argument under its own name. That one rule gives the
architecture stored in a weights file and the fingerprint of an evaluation, from a YAML file and from Python alike.
"""

import hashlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def arguments(component: object, leave_out: Iterable[str] = ()) -> dict[str, Any]:
    """The constructor arguments of ``component`` by name, as they are."""
    parameters = inspect.signature(type(component)).parameters.values()
    # nn.Module's own *args and **kwargs take nothing; a public constructor here has none of its own.
    names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    missing = [name for name in names if not hasattr(component, name)]
    if missing:
        raise TypeError(
            f"{type(component).__name__} does not keep its constructor argument(s) {', '.join(missing)} as "
            "attributes of the same names, so its results could not be told from another's: store them."
        )
    return {name: getattr(component, name) for name in names if name not in set(leave_out)}


def describe(value: Any) -> Any:
    """``value`` as plain data (numbers, strings, lists, dicts): components by class and arguments.

    A network with weights is described by its class, its architecture and a hash of its weights, never by the
    path they came from.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    described = {"class": type(value).__name__, "module": type(value).__module__}
    if hasattr(value, "described"):  # something read from a file: its content counts, not its path
        return described | describe(value.described())
    described |= describe(arguments(value, ("weights",)))
    if isinstance(value, nn.Module) and (own := _own_state(value)):
        described["weights_sha256"] = state_sha256(own)
    return described


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
