"""Detectors of adversarial images: kernels and two-sample tests of groups of images, and scores of single ones."""

from lustral.detectors.base import Detector, GroupDetector
from lustral.detectors.group_mmd import GroupMMD
from lustral.detectors.kernel_files import load_kernel_state, save_kernel
from lustral.detectors.kernels import DeepKernel, GaussianKernel, Kernel, SemanticKernel
from lustral.detectors.mmd import Estimator, finite_power, mmd, power_objective
from lustral.detectors.published import load_dad_kernel
from lustral.detectors.reference import Reference, StoredReference
from lustral.detectors.sample_scores import PerturbationMMD, PerturbationNorm, SampleMMD
from lustral.detectors.thresholds import StoredThreshold, Threshold, calibrated, read_threshold
from lustral.detectors.trials import TwoSampleTest, run_trials
from lustral.detectors.two_sample import permutation_test, wild_bootstrap_test

__all__ = [
    "DeepKernel",
    "Detector",
    "Estimator",
    "GaussianKernel",
    "GroupDetector",
    "GroupMMD",
    "Kernel",
    "PerturbationMMD",
    "PerturbationNorm",
    "Reference",
    "SampleMMD",
    "SemanticKernel",
    "StoredReference",
    "StoredThreshold",
    "Threshold",
    "TwoSampleTest",
    "calibrated",
    "finite_power",
    "load_dad_kernel",
    "load_kernel_state",
    "mmd",
    "permutation_test",
    "power_objective",
    "read_threshold",
    "run_trials",
    "save_kernel",
    "wild_bootstrap_test",
]
