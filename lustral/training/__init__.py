"""Training: losses of classifiers, and learning-rate schedules that depend on the number of steps."""

from lustral.training.adversarial_set import AdversarialSet
from lustral.training.base import ClassifierLoss, evaluating
from lustral.training.clean import CleanCrossEntropy
from lustral.training.denoiser import DenoiserLoss, DenoiserTerms
from lustral.training.gan import GANLosses, gan_losses, gradient_penalty
from lustral.training.mixup import mixup_draws
from lustral.training.schedules import SizedSchedule, WarmupConstant, WarmupCosine

__all__ = [
    "AdversarialSet",
    "ClassifierLoss",
    "CleanCrossEntropy",
    "DenoiserLoss",
    "DenoiserTerms",
    "GANLosses",
    "SizedSchedule",
    "WarmupConstant",
    "WarmupCosine",
    "evaluating",
    "gan_losses",
    "gradient_penalty",
    "mixup_draws",
]
