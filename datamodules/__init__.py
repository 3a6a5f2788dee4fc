"""Data modules: every data set as batches of (image in [0, 1], label, index)."""

from datamodules.arrays import Arrays
from datamodules.base import ImageDataModule
from datamodules.cifar import CIFAR10
from datamodules.cifar10c import CIFAR10C
from datamodules.digits import Digits
from datamodules.image_folder import ImageFolder
from datamodules.imagenet import ImageNet
from datamodules.streetdigits import StreetDigits
from datamodules.svhn import SVHN

__all__ = [
    "CIFAR10",
    "CIFAR10C",
    "SVHN",
    "Arrays",
    "Digits",
    "ImageDataModule",
    "ImageFolder",
    "ImageNet",
    "StreetDigits",
]
