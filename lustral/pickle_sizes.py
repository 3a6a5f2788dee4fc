"""A check of the sizes that a pickle announces, before it is loaded: eight bytes may request gigabytes."""

import mmap
import pickle
import pickletools
from pathlib import Path

_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")


def refuse_oversized(path: str | Path) -> None:
    """Read a pickle's instructions without executing them, and refuse announced sizes that the file cannot hold.

    Python's own reader allocates memory for whatever frame length a pickle announces, and for a memo table up to
    whatever number the pickle names.

    Args:
        path: the file.

    Raises:
        pickle.UnpicklingError: if a frame is announced that is longer than the rest of the file, or a memo entry
            numbered above the number of instructions so far.
        ValueError: if the file is empty or no pickle.
    """
    if not Path(path).stat().st_size:
        raise ValueError("it is empty")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for number, (code, argument, position) in enumerate(pickletools.genops(content)):  # type: ignore[arg-type]
            if code.name in _MEMO and isinstance(argument, int) and not 0 <= argument <= number + 1:
                raise pickle.UnpicklingError(f"it numbers an object {argument}, and has {number} before")
            if code.name == "FRAME" and isinstance(argument, int) and argument > len(content) - (position or 0):
                raise pickle.UnpicklingError(f"it announces {argument} bytes, and is {len(content)} long")
