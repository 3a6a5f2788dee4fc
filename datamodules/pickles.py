"""Safe reading of pickles, which could otherwise run any program: only plain arrays are accepted."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from lustral.pickle_sizes import refuse_oversized

_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]  # numpy's own function, whose module moved in NumPy 2


class _Array:
    """Replaces ``numpy.ndarray``, which would allocate memory for any shape that a pickle calls it with."""


def _empty(kind: Any, shape: Any, code: Any) -> Any:
    """Replaces NumPy's ``_reconstruct``: pickles of arrays make an empty array, and then fill it."""
    if kind is not _Array or shape != (0,):
        raise pickle.UnpicklingError(f"it asks for an array of shape {shape} without its content")
    return _RECONSTRUCT(np.ndarray, (0,), b"b")


def _encode(text: str, encoding: str) -> bytes:
    """Replaces ``_codecs.encode``, with which Python 3 pickles bytes in old protocols."""
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
    """The lists, dicts, strings, numbers and NumPy arrays in a pickle file; no code in it is executed.

    Strings of Python 2 are read as Latin-1.

    Raises:
        ValueError: if the file is not a pickle, is truncated, requests more memory than it fills, or holds anything
            else.
        OSError: if it cannot be opened.
    """
    with open(path, "rb") as file:
        try:
            refuse_oversized(path)
            return _ArrayUnpickler(file, encoding="latin1").load()
        except Exception as error:  # damaged pickles raise errors of many types
            raise ValueError(f"{path} cannot be read as a pickle of arrays: {error}.") from error
