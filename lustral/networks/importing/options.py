"""Checks of the options that ``--set`` passes to a format; the error on a wrong value says what is allowed."""

from collections.abc import Sequence
from typing import Any


def whole(option: str, value: Any) -> int:
    """``value`` as a size or a count.

    Raises:
        ValueError: if it is not an integer of at least 1.
    """
    if not _is_whole(value):
        raise ValueError(f"--set {option} takes a whole number from 1 on, not {value!r}.")
    return value


def wholes(option: str, value: Any) -> list[int]:
    """``value`` as a list of sizes, which may be empty.

    Raises:
        ValueError: if it is not a list of integers of at least 1.
    """
    if not isinstance(value, (list, tuple)) or not all(map(_is_whole, value)):
        raise ValueError(
            f"--set {option} takes a list of whole numbers from 1 on, such as {option}=[16,8], not {value!r}."
        )
    return list(value)


def word(option: str, value: Any) -> str:
    """``value`` as a name.

    Raises:
        ValueError: if it is a number or a list.
    """
    if not isinstance(value, str):
        raise ValueError(f"--set {option} takes a name, not {value!r}.")
    return value


def per_channel(option: str, value: float | Sequence[float]) -> tuple[float, ...]:
    """``value`` as a tuple of one number, or of one for each channel.

    Raises:
        ValueError: if it is anything else.
    """
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not values or not all(isinstance(v, (int, float)) for v in values):
        raise ValueError(
            f"--set {option} takes a number or one a channel, such as {option}=(0.5,0.5,0.5), not {value!r}."
        )
    return tuple(float(v) for v in values)  # type: ignore[arg-type]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
