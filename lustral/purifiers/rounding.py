"""Rounding, and what attacks differentiate in its place: its own derivative is zero almost everywhere."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

Stand = Literal["straight_through", "soft"]


def straight_through(x: Tensor) -> Tensor:
    """``x`` rounded to whole numbers, with a derivative of 1 (which is not that of what is computed)."""
    return x.detach().round() + (x - x.detach())  # the second term is exactly 0


def clamp_straight_through(x: Tensor, low: float, high: float) -> Tensor:
    """``x`` clamped, with a derivative of 1 outside of the bounds too."""
    return x.detach().clamp(low, high) + (x - x.detach())


def soft(x: Tensor) -> Tensor:
    """round(x) + (x - round(x))^3, differentiable almost everywhere with a derivative of 3 (x - round(x))^2 (Shin and
    Song, "JPEG-resistant adversarial images", 2017). It is at most 0.125 away from the rounded value, and flat at whole
    numbers."""
    whole = x.detach().round()
    return whole + (x - whole) ** 3


STANDS: dict[Stand, Callable[[Tensor], Tensor]] = {"straight_through": straight_through, "soft": soft}
