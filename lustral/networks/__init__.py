"""Networks behind the two conventions (classifier, denoiser), and weights files that alone rebuild them."""

from lustral.networks.classifier import Classifier
from lustral.networks.denoisers import NoisePredictor, UNetDenoiser
from lustral.networks.song_unet import SongUNet, SongUNetDenoiser
from lustral.networks.timm_classifier import TimmClassifier
from lustral.networks.weights import load_classifier, load_denoiser, load_network, save_network
from lustral.networks.wide_resnet import WideResNet

__all__ = [
    "Classifier",
    "NoisePredictor",
    "SongUNet",
    "SongUNetDenoiser",
    "TimmClassifier",
    "UNetDenoiser",
    "WideResNet",
    "load_classifier",
    "load_denoiser",
    "load_network",
    "save_network",
]
