"""Attacks: one per file; all of them query the defence through one engine."""

from lustral.attacks.apgd import APGD, APGDTargeted
from lustral.attacks.base import Attack, AttackResult
from lustral.attacks.disruption import ConsistencyDisruption
from lustral.attacks.engine import Answer, Engine
from lustral.attacks.ensemble import Ensemble, gradient_attacks, surrogates
from lustral.attacks.evading_pgd import LagrangianPGD, OrthogonalPGD
from lustral.attacks.evasion import Evade, SelectiveEvasion, WithStatistic
from lustral.attacks.fab import FAB
from lustral.attacks.first_order import FirstOrderAttack, GradientAttack, State
from lustral.attacks.foreign import ForeignAttack
from lustral.attacks.latent_search import LatentSearch
from lustral.attacks.mixed_groups import MixedGroups
from lustral.attacks.mma import MMA, CappedTargetMargin
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
from lustral.attacks.on_manifold import OnManifold
from lustral.attacks.pgd import PGD
from lustral.attacks.random_directions import RandomDirections
from lustral.attacks.square import Square
from lustral.attacks.steering import Deviation, MoveAttention, MoveReference, SteeredObjective, WithScore
from lustral.attacks.victim import Cases, Judged, Victim
from lustral.attacks.victim_module import VictimModule

__all__ = [
    "APGD",
    "FAB",
    "MMA",
    "PGD",
    "APGDTargeted",
    "Answer",
    "Attack",
    "AttackResult",
    "CappedTargetMargin",
    "Cases",
    "ConsistencyDisruption",
    "CrossEntropy",
    "Deviation",
    "DifferenceOfLogitsRatio",
    "Engine",
    "Ensemble",
    "Evade",
    "FirstOrderAttack",
    "ForeignAttack",
    "GradientAttack",
    "Judged",
    "LagrangianPGD",
    "LatentSearch",
    "Margin",
    "MeanLogitCrossEntropy",
    "MeanLogitMargin",
    "MixedGroups",
    "MoveAttention",
    "MoveReference",
    "Objective",
    "OnManifold",
    "OrthogonalPGD",
    "RandomDirections",
    "SelectiveEvasion",
    "SelectiveMargin",
    "Square",
    "State",
    "SteeredObjective",
    "TargetedDifferenceOfLogitsRatio",
    "Victim",
    "VictimModule",
    "WithScore",
    "WithStatistic",
    "gradient_attacks",
    "surrogates",
]
