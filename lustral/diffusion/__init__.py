"""Noise schedules, the denoiser convention, solvers, and the unrolled trajectory with its gradients."""

from lustral.diffusion.denoiser import Denoiser, RememberedDenoiser, from_diffusion, to_diffusion
from lustral.diffusion.generator import ConsistencyGenerator, Generator
from lustral.diffusion.losses import DiffusionLoss, EDMLoss, HybridLoss, SimpleLoss
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
    "Ancestral",
    "ConsistencyGenerator",
    "Context",
    "CosineSchedule",
    "Denoiser",
    "DiffusionLoss",
    "DiscreteSchedule",
    "EDMLoss",
    "EDMSchedule",
    "EulerMaruyama",
    "FlowEuler",
    "Generator",
    "Heun",
    "HybridLoss",
    "LinearSchedule",
    "NoiseSchedule",
    "PerturbationScore",
    "RememberedDenoiser",
    "SimpleLoss",
    "SingleScore",
    "Solver",
    "VESchedule",
    "VPSchedule",
    "from_diffusion",
    "to_diffusion",
    "unroll",
]
