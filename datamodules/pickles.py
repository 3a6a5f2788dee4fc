"""Reading foreign pickles, which could run any program when read: only plain arrays are let through."""

import codecs
import pickle
from pathlib import Path
from typing import Any

import numpy as np

_RECONSTRUCT = np.empty(0).__reduce__()[0]  # numpy's own function, whose module moved in NumPy 2
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,  # how Python 3 writes bytes in old protocols
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
        ValueError: if the file is not a pickle, is cut off, or holds anything else.
        OSError: if it cannot be opened.
    """
    with open(path, "rb") as file:
        try:
            return _ArrayUnpickler(file, encoding="latin1").load()
        except Exception as error:  # a damaged pickle raises nearly anything
            raise ValueError(f"{path} cannot be read as a pickle of arrays: {error}.") from error
