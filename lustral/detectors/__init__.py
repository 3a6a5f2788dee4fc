"""Detectors of adversarial images: kernels and two-sample tests of groups of images, and scores of single ones."""

from lustral.detectors.kernel_files import load_kernel_state, save_kernel
from lustral.detectors.kernels import DeepKernel, GaussianKernel, Kernel, SemanticKernel
from lustral.detectors.mmd import Estimator, mmd, power_objective

__all__ = [
    "DeepKernel",
    "Estimator",
    "GaussianKernel",
    "Kernel",
    "SemanticKernel",
    "load_kernel_state",
    "mmd",
    "power_objective",
    "save_kernel",
]
