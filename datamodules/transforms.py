"""Image transforms between disk and batch. Random ones draw from the generator that is passed in."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

_BILINEAR = Image.Resampling.BILINEAR  # antialiased: Pillow widens the filter when it downsamples


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as float32 (3, H, W) in [0, 1]."""
    pixels = np.array(image, dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32).div(255).contiguous()


def random_flip(image: Tensor, rng: np.random.Generator) -> Tensor:
    """``image`` (C, H, W), mirrored left to right with probability 1/2."""
    return image.flip(-1) if rng.random() < 0.5 else image


def random_crop(image: Tensor, padding: int, rng: np.random.Generator) -> Tensor:
    """``image`` (C, H, W) shifted randomly by up to ``padding`` pixels in each direction, filled with zeros."""
    if padding == 0:
        return image
    height, width = image.shape[-2:]
    top, left = rng.integers(0, 2 * padding + 1, size=2).tolist()
    return F.pad(image, (padding,) * 4)[:, top : top + height, left : left + width]


def resize_center_crop(image: Image.Image, resize: int, size: int) -> Image.Image:
    """The central ``size`` x ``size`` pixels after resizing the shorter side to ``resize`` >= ``size`` pixels.

    Sizes are rounded as in torchvision's ``Resize`` and ``CenterCrop``, with which published classifiers were trained.
    """
    width, height = image.size
    short = min(width, height)
    image = image.resize((int(resize * width / short), int(resize * height / short)), _BILINEAR)
    left, top = (round((side - size) / 2.0) for side in image.size)
    return image.crop((left, top, left + size, top + size))


def random_resized_crop(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """A random crop with 8 % to 100 % of the area and an aspect ratio of 3:4 to 4:3, resized to ``size`` x ``size``.

    The usual augmentation of ImageNet classifiers. If ten random boxes do not fit, the largest central box with an
    allowed aspect ratio is taken.
    """
    width, height = image.size
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(rng.integers(0, width - box_width + 1))
            top = int(rng.integers(0, height - box_height + 1))
            break
    else:
        box_width = min(width, round(height * 4 / 3))
        box_height = min(height, round(width * 4 / 3))
        left, top = (width - box_width) // 2, (height - box_height) // 2
    # Cropped before resizing: with Pillow's box argument, pixels outside the box would affect its edge.
    return image.crop((left, top, left + box_width, top + box_height)).resize((size, size), _BILINEAR)
