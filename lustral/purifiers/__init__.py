"""Purifiers: one method a file."""

from lustral.purifiers.base import Context, GradientMode, Purified, Purifier
from lustral.purifiers.diffpure import DiffPure
from lustral.purifiers.identity import Identity

__all__ = ["Context", "DiffPure", "GradientMode", "Identity", "Purified", "Purifier"]
