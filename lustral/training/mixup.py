"""Mixup (Zhang et al. 2018): who is mixed with whom, and in which proportion, drawn by key."""

import torch
from scipy.special import betaincinv
from torch import Tensor

from lustral.noise import NoiseStream


def mixup_draws(noise: NoiseStream, alpha: float) -> tuple[Tensor, Tensor]:
    """Each row's own share of its mixture, (B,) float64 in [0, 1], and the row that it is mixed with, (B,) int64.

    Shares are Beta(``alpha``, ``alpha``): the inverse of that distribution function at a uniform draw of the sample
    (the paper draws one for the whole batch). The partners are a permutation of the batch, in the order of another such
    draw, so that they alone depend on the batch.
    """
    uniform = noise.fork("mixup", "share").uniform((), dtype=torch.float64)
    share = torch.from_numpy(betaincinv(alpha, alpha, uniform.cpu().numpy())).to(uniform.device)
    return share, noise.fork("mixup", "partner").uniform((), dtype=torch.float64).argsort()
