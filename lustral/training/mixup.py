"""Mixup (Zhang et al. 2018): keyed random partners and shares."""

import torch
from scipy.special import betaincinv
from torch import Tensor

from lustral.noise import NoiseStream


def mixup_draws(noise: NoiseStream, alpha: float) -> tuple[Tensor, Tensor]:
    """Each image's share in its own mixture, (B,) float64 in [0, 1], and the row that it is mixed with, (B,) int64.

    Shares are Beta(``alpha``, ``alpha``) distributed, by the inverse distribution function of a uniform random number
    per sample (the paper draws one for the whole batch). The partners are a permutation of the batch, the order of
    another uniform random number per sample; so of the two only the partners depend on the batch.
    """
    uniform = noise.fork("mixup", "share").uniform((), dtype=torch.float64)
    share = torch.from_numpy(betaincinv(alpha, alpha, uniform.cpu().numpy())).to(uniform.device)
    return share, noise.fork("mixup", "partner").uniform((), dtype=torch.float64).argsort()
