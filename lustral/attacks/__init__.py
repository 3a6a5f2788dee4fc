"""Attacks: one a file, all through one engine."""

from lustral.attacks.base import Attack, AttackResult, Cases, Judged, Victim
from lustral.attacks.engine import Answer, Engine
from lustral.attacks.ensemble import Ensemble, surrogates
from lustral.attacks.first_order import FirstOrderAttack, State
from lustral.attacks.objectives import CrossEntropy, Margin, MeanLogitMargin, Objective, SelectiveMargin
from lustral.attacks.pgd import PGD
from lustral.attacks.random_directions import RandomDirections
from lustral.attacks.steering import Deviation, SteeredObjective, WithScore

__all__ = [
    "PGD",
    "Answer",
    "Attack",
    "AttackResult",
    "Cases",
    "CrossEntropy",
    "Deviation",
    "Engine",
    "Ensemble",
    "FirstOrderAttack",
    "Judged",
    "Margin",
    "MeanLogitMargin",
    "Objective",
    "RandomDirections",
    "SelectiveMargin",
    "State",
    "SteeredObjective",
    "Victim",
    "WithScore",
    "surrogates",
]
