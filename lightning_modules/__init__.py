"""Lightning modules: thin shells around the core that say what is optimised and what is logged."""

from lightning_modules.classifier_training import ClassifierTraining
from lightning_modules.consistency_training import ConsistencyTraining
from lightning_modules.corruption_evaluation import CorruptionEvaluation
from lightning_modules.denoiser_training import DenoiserTraining
from lightning_modules.detection_evaluation import DetectionEvaluation
from lightning_modules.detector_calibration import DetectorCalibration
from lightning_modules.diffusion_training import DiffusionTraining
from lightning_modules.evaluation import Evaluation
from lightning_modules.gan_training import GANTraining
from lightning_modules.mmd_kernel_training import MMDKernelTraining
from lightning_modules.module import LustralModule
from lightning_modules.quality_evaluation import QualityEvaluation
from lightning_modules.robustness_evaluation import RobustnessEvaluation
from lightning_modules.score_reference import ScoreReference

__all__ = [
    "ClassifierTraining",
    "ConsistencyTraining",
    "CorruptionEvaluation",
    "DenoiserTraining",
    "DetectionEvaluation",
    "DetectorCalibration",
    "DiffusionTraining",
    "Evaluation",
    "GANTraining",
    "LustralModule",
    "MMDKernelTraining",
    "QualityEvaluation",
    "RobustnessEvaluation",
    "ScoreReference",
]
