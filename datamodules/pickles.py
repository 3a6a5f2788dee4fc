"""Reading foreign pickles, which could run any program when read: only plain arrays are let through."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from lustral.pickle_sizes import refuse_oversized

_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]  # numpy's own function, whose module moved in NumPy 2


class _Array:
    """In the place of ``numpy.ndarray``, which would set memory aside for any shape that it is called with."""


def _empty(kind: Any, shape: Any, code: Any) -> Any:
    """In the place of NumPy's ``_reconstruct``: its pickles make an empty array, and then fill it."""
    if kind is not _Array or shape != (0,):
        raise pickle.UnpicklingError(f"it asks for an array of shape {shape} without its content")
    return _RECONSTRUCT(np.ndarray, (0,), b"b")


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in old protocols."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it asks for the codec {encoding}, which no array needs")
    return text.encode("latin1")


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _empty,
    ("numpy._core.multiarray", "_reconstruct"): _empty,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no array needs, and might run a foreign program"
            ) from None


def read_array_pickle(path: str | Path) -> Any:
    """The lists, dicts, strings, numbers and NumPy arrays in a pickle file; nothing in it is run.

    Strings of Python 2 are read as Latin-1.

    Raises:
        ValueError: if the file is not a pickle, is cut off, asks for more memory than it fills, or holds anything else.
        OSError: if it cannot be opened.
    """
    with open(path, "rb") as file:
        try:
            refuse_oversized(path)
            return _ArrayUnpickler(file, encoding="latin1").load()
        except Exception as error:  # a damaged pickle raises nearly anything
            raise ValueError(f"{path} cannot be read as a pickle of arrays: {error}.") from error
