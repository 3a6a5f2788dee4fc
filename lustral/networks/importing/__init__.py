"""Import of published weights: from their authors' files into weights files of this project, strictly.

`FORMATS` is the closed list of the formats, each a `Format`.
"""

from lustral.networks.importing.cifar_nets import (
    DIFFPURE_RESNET50,
    KUANGLIU_MOBILENET,
    KUANGLIU_RESNET,
    KUANGLIU_SHUFFLENET,
)
from lustral.networks.importing.consistency_jax import CONSISTENCY_JAX
from lustral.networks.importing.consistency_models import CONSISTENCY_MODELS
from lustral.networks.importing.dad import DAD_DENOISER
from lustral.networks.importing.ddpm import DDPM, LEE_KIM_SVHN
from lustral.networks.importing.edm import EDM
from lustral.networks.importing.formats import Format
from lustral.networks.importing.guided_diffusion import GUIDED_DIFFUSION, IMPROVED_DIFFUSION
from lustral.networks.importing.imagenet_classifiers import TIMM, TORCHVISION
from lustral.networks.importing.robustbench import ROBUSTBENCH
from lustral.networks.importing.robustness import ROBUSTNESS
from lustral.networks.importing.rules import Rule, fill, pairs, rule
from lustral.networks.importing.score_sde import SCORE_SDE
from lustral.networks.importing.wide_resnets import DIFFPURE_WRN, MELIKETOY_WRN, ROBUSTBENCH_WRN, SZAGORUYKO_WRN

FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        ROBUSTBENCH_WRN,
        ROBUSTBENCH,
        ROBUSTNESS,
        DIFFPURE_WRN,
        MELIKETOY_WRN,
        SZAGORUYKO_WRN,
        DIFFPURE_RESNET50,
        KUANGLIU_RESNET,
        KUANGLIU_MOBILENET,
        KUANGLIU_SHUFFLENET,
        TORCHVISION,
        TIMM,
        GUIDED_DIFFUSION,
        IMPROVED_DIFFUSION,
        DDPM,
        LEE_KIM_SVHN,
        SCORE_SDE,
        EDM,
        CONSISTENCY_JAX,
        CONSISTENCY_MODELS,
        DAD_DENOISER,
    )
}

__all__ = ["FORMATS", "Format", "Rule", "fill", "pairs", "rule"]
