"""The one learning-rate schedule of the training recipes."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def check_warmup(warmup: float) -> None:
    """Refuse a share of the steps that is none."""
    if not 0 <= warmup <= 1:
        raise ValueError(f"model.warmup is {warmup}; it is a share of all steps and lies in [0, 1].")


def warmup_cosine(optimizer: Optimizer, warmup: float, total_steps: int, cosine: bool) -> dict[str, Any]:
    """Linear warm-up over ``warmup`` (a share of the steps), then constant or a cosine to zero; stepped a batch."""
    rising = max(1, round(warmup * total_steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        if not cosine:
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, total_steps - rising)))

    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}
