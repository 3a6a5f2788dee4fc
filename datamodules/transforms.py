"""What is done to an image between disk and batch. What is random draws from the generator it is given."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

_BILINEAR = Image.Resampling.BILINEAR  # Pillow's filter widens when it shrinks: it is antialiased


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as float32 (3, H, W) in [0, 1]."""
    pixels = np.array(image, dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32).div(255).contiguous()


def random_flip(image: Tensor, rng: np.random.Generator) -> Tensor:
    """``image`` (C, H, W), mirrored left to right in half of the draws."""
    return image.flip(-1) if rng.random() < 0.5 else image


def random_crop(image: Tensor, padding: int, rng: np.random.Generator) -> Tensor:
    """``image`` (C, H, W) shifted by up to ``padding`` pixels each way, zeros filling the gap."""
    if padding == 0:
        return image
    height, width = image.shape[-2:]
    top, left = rng.integers(0, 2 * padding + 1, size=2).tolist()
    return F.pad(image, (padding,) * 4)[:, top : top + height, left : left + width]


def resize_center_crop(image: Image.Image, resize: int, size: int) -> Image.Image:
    """The middle ``size`` x ``size`` pixels after the shorter side was brought to ``resize`` >= ``size``
    pixels.

    Rounds as torchvision's ``Resize`` and ``CenterCrop`` do, whose images the published classifiers know.
    """
    width, height = image.size
    short = min(width, height)
    image = image.resize((int(resize * width / short), int(resize * height / short)), _BILINEAR)
    left, top = (round((side - size) / 2.0) for side in image.size)
    return image.crop((left, top, left + size, top + size))


def random_resized_crop(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """A random 8 % to 100 % of the area, 3:4 to 4:3 in shape, resized to ``size`` x ``size`` pixels.

    The usual augmentation of ImageNet classifiers. After ten boxes that do not fit it takes the largest
    middle one of an allowed shape.
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
    # Cropped first: Pillow's own box argument lets pixels outside of the box into its edge.
    return image.crop((left, top, left + box_width, top + box_height)).resize((size, size), _BILINEAR)
