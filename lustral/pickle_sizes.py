"""What a pickle asks for, compared with how long it is, before anything is made: eight bytes may ask for gigabytes."""

import mmap
import pickle
import pickletools
from pathlib import Path

_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")


def refuse_oversized(path: str | Path) -> None:
    """Walk through a pickle's instructions without following any.

    Python's own reader sets memory aside for whatever length a pickle announces, and for its table of remembered
    objects up to whatever number is named.

    Args:
        path: the file.

    Raises:
        pickle.UnpicklingError: if something in it is announced longer than the file, or numbered beyond its length.
        ValueError: if it is no pickle.
    """
    if not Path(path).stat().st_size:
        raise ValueError("it is empty")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for number, (code, argument, position) in enumerate(pickletools.genops(content)):  # type: ignore[arg-type]
            if code.name in _MEMO and isinstance(argument, int) and not 0 <= argument <= number + 1:
                raise pickle.UnpicklingError(f"it numbers an object {argument}, and has {number} before")
            if code.name == "FRAME" and isinstance(argument, int) and argument > len(content) - (position or 0):
                raise pickle.UnpicklingError(f"it announces {argument} bytes, and is {len(content)} long")
