"""Ratios as papers write them: ``8/255`` is a number wherever a ratio is expected."""

import math

Ratio = float | str


def parse_ratio(value: Ratio, name: str = "ratio") -> float:
    """Return ``value`` as a float; a string may be a decimal number or a quotient such as ``"8/255"``.

    Raises:
        ValueError: if the text is neither, or the result is not a finite number. ``name`` is the option named
            in the message.
    """
    try:
        numerator, slash, denominator = str(value).partition("/")
        number = float(numerator) / (float(denominator) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} is {value!r}, which is neither a number nor a quotient such as 8/255.")
    return number
