"""Purifiers: one method per file."""

from lustral.diffusion import Context
from lustral.purifiers.answers import AnswerOfInput, AnswerOfTransformed, AnswerOfUnguided, ReferenceAnswer
from lustral.purifiers.attention import AttentionMask
from lustral.purifiers.base import GradientMode, Purified, Purifier
from lustral.purifiers.chain import Chain
from lustral.purifiers.cmap import CMAP
from lustral.purifiers.dad import DAD, DADPerSample
from lustral.purifiers.denoise import Denoise
from lustral.purifiers.diffpure import DiffPure
from lustral.purifiers.distribution_transfer import DistributionTransfer
from lustral.purifiers.gdmp import GDMP
from lustral.purifiers.gnsp import GNSP
from lustral.purifiers.guidance import Guidance, MSEGuidance, SSIMGuidance, Step
from lustral.purifiers.heterogeneous import HeterogeneousNoise
from lustral.purifiers.identity import Identity
from lustral.purifiers.jpeg import JPEG
from lustral.purifiers.langevin import LangevinPurifier
from lustral.purifiers.latent_constraints import LatentConstraint, LatentMMD, LatentMoments, LatentWasserstein
from lustral.purifiers.levels import FixedLevels, LevelRule, LinearLevels, MeanLevels, ShuffledLevels, SigmoidLevels
from lustral.purifiers.masks import ConstantMask, InvertedMask, Mask, RandomMask
from lustral.purifiers.one_step import OneStepConsistency
from lustral.purifiers.output_guidance import EntropyGuidance, JointGuidance, OutputGuidance
from lustral.purifiers.perceptual import LPIPSGuidance
from lustral.purifiers.reference import StoredScores
from lustral.purifiers.rounds import Round, RoundPurifier
from lustral.purifiers.ssni import SSNI
from lustral.purifiers.transforms import BitDepth, GaussianBlur
from lustral.purifiers.variant import Variant

__all__ = [
    "CMAP",
    "DAD",
    "GDMP",
    "GNSP",
    "JPEG",
    "SSNI",
    "AnswerOfInput",
    "AnswerOfTransformed",
    "AnswerOfUnguided",
    "AttentionMask",
    "BitDepth",
    "Chain",
    "ConstantMask",
    "Context",
    "DADPerSample",
    "Denoise",
    "DiffPure",
    "DistributionTransfer",
    "EntropyGuidance",
    "FixedLevels",
    "GaussianBlur",
    "GradientMode",
    "Guidance",
    "HeterogeneousNoise",
    "Identity",
    "InvertedMask",
    "JointGuidance",
    "LPIPSGuidance",
    "LangevinPurifier",
    "LatentConstraint",
    "LatentMMD",
    "LatentMoments",
    "LatentWasserstein",
    "LevelRule",
    "LinearLevels",
    "MSEGuidance",
    "Mask",
    "MeanLevels",
    "OneStepConsistency",
    "OutputGuidance",
    "Purified",
    "Purifier",
    "RandomMask",
    "ReferenceAnswer",
    "Round",
    "RoundPurifier",
    "SSIMGuidance",
    "ShuffledLevels",
    "SigmoidLevels",
    "Step",
    "StoredScores",
    "Variant",
]
