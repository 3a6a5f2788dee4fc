"""Purifiers: one method a file."""

from lustral.purifiers.base import Context, GradientMode, Purified, Purifier
from lustral.purifiers.diffpure import DiffPure
from lustral.purifiers.gdmp import GDMP
from lustral.purifiers.gnsp import GNSP
from lustral.purifiers.identity import Identity
from lustral.purifiers.pieces import Pieces
from lustral.purifiers.rounds import Round, RoundPurifier

__all__ = [
    "GDMP",
    "GNSP",
    "Context",
    "DiffPure",
    "GradientMode",
    "Identity",
    "Pieces",
    "Purified",
    "Purifier",
    "Round",
    "RoundPurifier",
]
