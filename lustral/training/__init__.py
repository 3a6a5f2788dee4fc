"""Training: losses of classifiers, and learning-rate schedules that depend on the number of steps."""

from lustral.training.adversarial_set import AdversarialSet
from lustral.training.base import ClassifierLoss, evaluating
from lustral.training.clean import CleanCrossEntropy
from lustral.training.denoiser import DenoiserLoss, DenoiserTerms
from lustral.training.mixup import mixup_draws
from lustral.training.schedules import SizedSchedule, WarmupConstant, WarmupCosine

__all__ = [
    "AdversarialSet",
    "ClassifierLoss",
    "CleanCrossEntropy",
    "DenoiserLoss",
    "DenoiserTerms",
    "SizedSchedule",
    "WarmupConstant",
    "WarmupCosine",
    "evaluating",
    "mixup_draws",
]
