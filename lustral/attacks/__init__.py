"""Attacks: one a file, all through one engine."""

from lustral.attacks.apgd import APGD, APGDTargeted
from lustral.attacks.base import Attack, AttackResult, Cases, Judged, Victim
from lustral.attacks.engine import Answer, Engine
from lustral.attacks.ensemble import Ensemble, surrogates
from lustral.attacks.fab import FAB
from lustral.attacks.first_order import FirstOrderAttack, State
from lustral.attacks.objectives import (
    CrossEntropy,
    DifferenceOfLogitsRatio,
    Margin,
    MeanLogitCrossEntropy,
    MeanLogitMargin,
    Objective,
    SelectiveMargin,
    TargetedDifferenceOfLogitsRatio,
)
from lustral.attacks.pgd import PGD
from lustral.attacks.random_directions import RandomDirections
from lustral.attacks.square import Square
from lustral.attacks.steering import Deviation, SteeredObjective, WithScore

__all__ = [
    "APGD",
    "FAB",
    "PGD",
    "APGDTargeted",
    "Answer",
    "Attack",
    "AttackResult",
    "Cases",
    "CrossEntropy",
    "Deviation",
    "DifferenceOfLogitsRatio",
    "Engine",
    "Ensemble",
    "FirstOrderAttack",
    "Judged",
    "Margin",
    "MeanLogitCrossEntropy",
    "MeanLogitMargin",
    "Objective",
    "RandomDirections",
    "SelectiveMargin",
    "Square",
    "State",
    "SteeredObjective",
    "TargetedDifferenceOfLogitsRatio",
    "Victim",
    "WithScore",
    "surrogates",
]
