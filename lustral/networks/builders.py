"""The closed list of networks that a weights file may name; each class registers itself with a decorator."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

from torch import nn

_PACKAGE = __name__.rpartition(".")[0]
_BUILDERS: dict[str, type[nn.Module]] = {}

N = TypeVar("N", bound=nn.Module)


def announced(network: type[N]) -> type[N]:
    """Allow weights files to name this class (a decorator). Subclasses are not included.

    A weights file decides which class is built with which arguments, so only this package's own classes are allowed,
    whose constructors are known to be safe.

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
    """The networks that a weights file may name, by name; complete after `lustral.networks` has been imported."""
    return MappingProxyType(_BUILDERS)
