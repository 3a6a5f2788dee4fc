"""Objects as data: a component's constructor arguments, read back from the attributes of the same names.

The constructor is the config, so a component keeps every argument under its own name. That one rule gives the
architecture stored in a weights file and the fingerprint of an evaluation, from a YAML file and from Python alike.
"""

import hashlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn


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
    name = type(value).__name__
    if isinstance(value, nn.Module) and next(value.parameters(), None) is not None and "weights" in vars(value):
        return {"class": name, **describe(arguments(value, ("weights",))), "weights_sha256": weights_sha256(value)}
    return {"class": name, **describe(arguments(value))}


def weights_sha256(module: nn.Module) -> str:
    """A hash of every name, shape, type and value of a module's state: equal for equal weights on any device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
