"""Networks behind the two conventions (classifier, denoiser), and weights files from which they can be rebuilt."""

from lustral.networks.adm import ADMDenoiser
from lustral.networks.cifar_resnet import CifarResNet
from lustral.networks.classifier import Classifier, Stage
from lustral.networks.denoisers import PreconditionedDenoiser
from lustral.networks.dunet import DUNet, load_image_denoiser
from lustral.networks.gan import GANDiscriminator, GANGenerator, load_generator
from lustral.networks.mobilenet_v2 import CifarMobileNetV2
from lustral.networks.penultimate import ConvFeatures, Penultimate
from lustral.networks.preact_resnet import PreActResNet
from lustral.networks.shufflenet_v2 import ShuffleNetV2
from lustral.networks.song_unet import SongUNet, SongUNetDenoiser
from lustral.networks.swish_wide_resnet import SwishWideResNet
from lustral.networks.timm_classifier import TimmClassifier
from lustral.networks.torch_classifier import TorchClassifier, WrappedClassifier
from lustral.networks.transfer import with_new_head
from lustral.networks.unet import UNetDenoiser
from lustral.networks.weights import load_classifier, load_denoiser, load_flow, load_network, save_network
from lustral.networks.wide_resnet import WideResNet

__all__ = [
    "ADMDenoiser",
    "CifarMobileNetV2",
    "CifarResNet",
    "Classifier",
    "ConvFeatures",
    "DUNet",
    "GANDiscriminator",
    "GANGenerator",
    "Penultimate",
    "PreActResNet",
    "PreconditionedDenoiser",
    "ShuffleNetV2",
    "SongUNet",
    "SongUNetDenoiser",
    "Stage",
    "SwishWideResNet",
    "TimmClassifier",
    "TorchClassifier",
    "UNetDenoiser",
    "WideResNet",
    "WrappedClassifier",
    "load_classifier",
    "load_denoiser",
    "load_flow",
    "load_generator",
    "load_image_denoiser",
    "load_network",
    "save_network",
    "with_new_head",
]
