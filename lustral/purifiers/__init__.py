"""Purifiers: one method a file."""

from lustral.purifiers.base import Context, GradientMode, Purified, Purifier
from lustral.purifiers.diffpure import DiffPure
from lustral.purifiers.gdmp import GDMP
from lustral.purifiers.gnsp import GNSP
from lustral.purifiers.identity import Identity
from lustral.purifiers.langevin import LangevinPurifier
from lustral.purifiers.levels import FixedLevels, LevelRule, LinearLevels, MeanLevels, ShuffledLevels, SigmoidLevels
from lustral.purifiers.pieces import Pieces
from lustral.purifiers.reference import StoredScores
from lustral.purifiers.rounds import Round, RoundPurifier
from lustral.purifiers.ssni import SSNI

__all__ = [
    "GDMP",
    "GNSP",
    "SSNI",
    "Context",
    "DiffPure",
    "FixedLevels",
    "GradientMode",
    "Identity",
    "LangevinPurifier",
    "LevelRule",
    "LinearLevels",
    "MeanLevels",
    "Pieces",
    "Purified",
    "Purifier",
    "Round",
    "RoundPurifier",
    "ShuffledLevels",
    "SigmoidLevels",
    "StoredScores",
]
