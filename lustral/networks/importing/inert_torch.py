"""Files of ``torch.save`` with more than tensors, read without executing anything: other objects become empty records.

Checkpoints of whole trainings hold options (``argparse.Namespace``), schedules and, if dill wrote them, functions. None
of these is needed or constructed here: everything except tensors, numbers, strings and containers is replaced.
"""

import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch._utils import _rebuild_tensor_v2

from lustral.networks.importing.inert_pickle import Held
from lustral.networks.importing.reading import existing


class _Silent(Held):
    """Replaces an object of any class: it accepts everything that a pickle does to it, and stays empty."""

    dump_patches = False  # torch reads this attribute of the modules in older files

    def __call__(self, *_: Any) -> "_Silent":
        return _Silent()

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass


def _parameter(data: Any, *_: Any) -> Any:
    return data


_MADE = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
}


class Unpickler(pickle.Unpickler):
    """The unpickler for `torch.load`: it resolves only the names that make tensors; all others become `_Silent`."""

    def find_class(self, module: str, name: str) -> Any:
        return _MADE.get((module, name), _Silent)  # torch itself finds the names of storages


def load(file: Any, **_: Any) -> Any:
    """`pickle.load` with this unpickler, with which `torch.load` reads the header of older files."""
    return Unpickler(file).load()


class _Module:
    """Replaces the module ``pickle`` in `torch.load`."""

    __name__ = "inert"
    Unpickler = Unpickler
    load = staticmethod(load)


def read_inert_torch(path: str | Path) -> Any:
    """The content of a file of ``torch.save``, with an empty `Held` for every object that is no tensor, number, string
    or container.

    Raises:
        ValueError: if the file is truncated or no torch file.
    """
    path = existing(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = [name.rpartition("/")[2] for name in archive.namelist()]
            if "constants.pkl" in names:  # torch.load would pass it to TorchScript
                raise ValueError("it is a TorchScript archive")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the file's age and kind
            return torch.load(path, map_location="cpu", pickle_module=_Module, weights_only=False)
    except Exception as error:  # damaged files raise errors of many types
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". ")[0].rstrip(".")[:200]
        raise ValueError(f"{path} is cut short or no file of torch.save ({why}): copy or download it again.") from error
