"""Pictures of attention and masks: where a classifier looks, and which pixels were chosen for it."""

import matplotlib as mpl
import torch
from torch import Tensor

_INSIDE = (0.835, 0.369, 0.0)
"""The colour that a mask is drawn in, `style.ROBUST` as red, green and blue."""
_STRENGTH = 0.55


def heat(attention: Tensor) -> Tensor:
    """(B, 3, H, W) colours of maps (B, 1, H, W) in [0, 1], dark at 0 and yellow at 1."""
    colours = mpl.colormaps["inferno"](attention.detach().float().cpu().clamp(0, 1)[:, 0].numpy())
    return torch.from_numpy(colours[..., :3]).float().movedim(-1, 1)


def overlay(images: Tensor, mask: Tensor) -> Tensor:
    """(B, 3, H, W) ``images`` (B, 1 or 3, H, W) in [0, 1] with the inside of a mask (B, 1, H, W) coloured."""
    shown = images.detach().float().cpu().clamp(0, 1).expand(-1, 3, -1, -1)
    weight = _STRENGTH * mask.detach().float().cpu().clamp(0, 1)
    return (1 - weight) * shown + weight * torch.tensor(_INSIDE)[None, :, None, None]
