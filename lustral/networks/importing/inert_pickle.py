"""Pickles of whole networks, read without executing anything: their objects become plain records.

NVIDIA's ``torch_utils.persistence`` stores each object as the source code of its class and its state, and a plain load
executes that code. Here the code is dropped and the state kept. Names that no network needs are refused.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._utils import _rebuild_tensor_v2

from lustral.networks.importing.reading import existing, solid
from lustral.pickle_sizes import refuse_oversized


class Held:
    """An object of a pickle: the name of its class, and its attributes. Constructor arguments are ignored.

    Attributes:
        class_name: the name of its class; "" if it is not needed.
        state: its attributes by name; empty if it had none.
    """

    class_name: str = ""

    def __init__(self, *_: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        # No copy: if an attribute refers back to its object, the pickle fills this dict later.
        self.state = state if isinstance(state, dict) else {}

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """The parameters and buffers of a module and its submodules, named as in its state dict."""
        own = self._members("_parameters") | self._members("_buffers")
        found = {f"{prefix}{name}": tensor for name, tensor in own.items() if isinstance(tensor, Tensor)}
        for name, module in self.modules().items():
            found |= module.tensors(f"{prefix}{name}.")
        return found

    def modules(self) -> dict[str, "Held"]:
        """The submodules of a module, by name."""
        return {name: module for name, module in self._members("_modules").items() if isinstance(module, Held)}

    def _members(self, group: str) -> dict[str, Any]:
        members = self.state.get(group)
        return dict(members) if isinstance(members, Mapping) else {}


class _Record(dict[str, Any]):
    """Replaces ``dnnlib.EasyDict``."""


class _RefusedError(pickle.UnpicklingError):
    pass


def _persistent(meta: Any) -> Held:
    """Replaces ``_reconstruct_persistent_obj``, which would execute ``meta["module_src"]``."""
    if not isinstance(meta, Mapping) or not isinstance(meta.get("state"), dict):
        raise pickle.UnpicklingError("a persistent object without a state")
    held = Held()
    held.class_name = str(meta.get("class_name"))
    held.__setstate__(meta["state"])
    return held


def _storage(content: bytes) -> Any:
    """Replaces ``torch.storage._load_from_bytes``, which would load a second pickle without any check."""
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # its message advises to load the file unsafely
        raise _RefusedError("more than numbers inside a tensor") from None


def _tensor(*arguments: Any) -> Tensor:
    tensor = _rebuild_tensor_v2(*arguments)
    if not solid(tensor):
        raise _RefusedError(f"a tensor of shape {tuple(tensor.shape)} out of fewer numbers")
    return tensor


def _parameter(data: Tensor, requires_grad: bool, hooks: Any) -> Tensor:
    return data


_ZIP = b"PK\x03\x04"  # what the files of torch.save begin with
_NUMPY = ("scalar", "_reconstruct")  # of NumPy 1 and of NumPy 2
_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "getattr"): Held,  # a bound method: ECT's loss has one
    ("dnnlib.util", "EasyDict"): _Record,
    ("numpy", "dtype"): Held,
    ("numpy", "ndarray"): Held,
    **{(f"numpy.{core}.multiarray", name): Held for core in ("core", "_core") for name in _NUMPY},
    **{("torch.nn.modules.container", name): Held for name in ("ModuleDict", "ModuleList", "Sequential")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None


def read_inert(path: str | Path) -> Any:
    """The dicts, lists, numbers, strings and tensors of a pickle, and a `Held` for every other object.

    Raises:
        ValueError: if the file is truncated, is no pickle, or uses a name that no network needs.
    """
    path = existing(path)
    with open(path, "rb") as file:
        if file.read(len(_ZIP)) == _ZIP:
            raise ValueError(f"{path} is a file of torch.save and no pickle of a network: check --format.")
        file.seek(0)
        try:
            refuse_oversized(path)
            return _Unpickler(file).load()
        except _RefusedError as error:
            raise ValueError(
                f"{path} asks for {error}, which no network needs and which could run code, so it was not read: "
                "download it from its authors."
            ) from None
        except Exception as error:  # damaged pickles raise errors of many types
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{path} is cut short or no pickle of a network ({why}): copy or download it again."
            ) from error
