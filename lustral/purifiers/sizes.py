"""Images at another size."""

import torch.nn.functional as F
from torch import Tensor


def resized(x: Tensor, size: int | None) -> Tensor:
    """``x`` resized to ``size`` pixels, bilinear and without antialiasing as in DiffPure; the attack's gradient passes
    through."""
    if size is None or size == x.shape[-1]:
        return x
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
