"""Noise schedules, the denoiser convention, solvers, and the unrolled trajectory with its gradients."""

from lustral.diffusion.consistency import (
    ConsistencyDistillation,
    ConsistencyLoss,
    ConsistencyTrainingLoss,
    EasyConsistencyTuning,
    ImprovedConsistencyTraining,
)
from lustral.diffusion.consistency_sampling import MultistepConsistency
from lustral.diffusion.consistency_schedules import Progress
from lustral.diffusion.denoiser import Denoiser, RememberedDenoiser, from_diffusion, to_diffusion
from lustral.diffusion.distances import LPIPS, Distance, PseudoHuber, SquaredDistance
from lustral.diffusion.generator import ConsistencyGenerator, Generator, generated
from lustral.diffusion.losses import DiffusionLoss, EDMLoss, HybridLoss, PosteriorLoss, SimpleLoss
from lustral.diffusion.perturbation import EPS, PerturbationScore, SingleScore
from lustral.diffusion.schedules import (
    CosineSchedule,
    DiscreteSchedule,
    EDMSchedule,
    LinearSchedule,
    NoiseSchedule,
    VESchedule,
    VPSchedule,
)
from lustral.diffusion.solvers import DDIM, Ancestral, EulerMaruyama, FlowEuler, Heun, Solver
from lustral.diffusion.trajectory import Context, unroll

__all__ = [
    "DDIM",
    "EPS",
    "LPIPS",
    "Ancestral",
    "ConsistencyDistillation",
    "ConsistencyGenerator",
    "ConsistencyLoss",
    "ConsistencyTrainingLoss",
    "Context",
    "CosineSchedule",
    "Denoiser",
    "DiffusionLoss",
    "DiscreteSchedule",
    "Distance",
    "EDMLoss",
    "EDMSchedule",
    "EasyConsistencyTuning",
    "EulerMaruyama",
    "FlowEuler",
    "Generator",
    "Heun",
    "HybridLoss",
    "ImprovedConsistencyTraining",
    "LinearSchedule",
    "MultistepConsistency",
    "NoiseSchedule",
    "PerturbationScore",
    "PosteriorLoss",
    "Progress",
    "PseudoHuber",
    "RememberedDenoiser",
    "SimpleLoss",
    "SingleScore",
    "Solver",
    "SquaredDistance",
    "VESchedule",
    "VPSchedule",
    "from_diffusion",
    "generated",
    "to_diffusion",
    "unroll",
]
