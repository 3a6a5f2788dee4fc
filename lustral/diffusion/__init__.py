"""Noise schedules, the denoiser convention, solvers, and the unrolled trajectory with its gradients."""

from lustral.diffusion.denoiser import Denoiser, from_diffusion, to_diffusion
from lustral.diffusion.schedules import DiscreteSchedule, NoiseSchedule, VPSchedule
from lustral.diffusion.solvers import DDIM, Ancestral, EulerMaruyama, Solver
from lustral.diffusion.trajectory import unroll

__all__ = [
    "DDIM",
    "Ancestral",
    "Denoiser",
    "DiscreteSchedule",
    "EulerMaruyama",
    "NoiseSchedule",
    "Solver",
    "VPSchedule",
    "from_diffusion",
    "to_diffusion",
    "unroll",
]
