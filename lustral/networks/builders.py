"""The closed list of networks that a weights file may name, each announced beside its class."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

from torch import nn

_PACKAGE = __name__.rpartition(".")[0]
_BUILDERS: dict[str, type[nn.Module]] = {}

N = TypeVar("N", bound=nn.Module)


def announced(network: type[N]) -> type[N]:
    """Let weights files name this class (a decorator). Subclasses are not announced with it.

    A file chooses what is built and with which arguments, so only this package's own classes may be chosen from:
    what their constructors do is known.

    Raises:
        ValueError: if the class is from outside this package, or its name is taken.
    """
    name, module = network.__name__, network.__module__
    if not module.startswith(f"{_PACKAGE}."):
        raise ValueError(
            f"{name} is of {module}, and weights files may name classes of {_PACKAGE} only: load its weights with a "
            "constructor of your own."
        )
    if name in _BUILDERS:
        raise ValueError(f"Weights files already name a {name}, of {_BUILDERS[name].__module__}: choose another name.")
    _BUILDERS[name] = network
    return network


def builders() -> Mapping[str, Callable[..., nn.Module]]:
    """Every network that a weights file may name. Complete once `lustral.networks` is imported, which imports them."""
    return MappingProxyType(_BUILDERS)
