"""A defence of groups, small: seven images together decide whether, and how strongly, each of them is purified."""

from collections.abc import Collection
from typing import ClassVar

import torch
from torch import Tensor

from lustral.diffusion import Context, Denoiser, from_diffusion, to_diffusion
from lustral.noise import NoiseStream
from lustral.purifiers import Purified, Purifier


class RoutedGroups(Purifier):
    """Groups whose mean image is rougher than ``threshold`` are denoised, in proportion to their excess; others pass.

    Args:
        denoiser: the diffusion model, asked once.
        threshold: of the statistic, the mean squared difference of neighbouring pixels of the group's mean image.
        std: of noise added before denoising; 0 makes the defence deterministic.
        t: the time at which the denoiser is asked, in steps out of 1000.
    """

    group_size = 7
    offers: ClassVar = {"statistic": "(B,) of the row's group, differentiable"}

    def __init__(self, denoiser: Denoiser, threshold: float, std: float = 0.0, t: float = 100.0) -> None:
        super().__init__()
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.threshold, self.std, self.t = threshold, std, t
        self.random = std > 0

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        # One group at a time: in another shape, last bits of a reduction are rounded otherwise.
        statistic = torch.cat([self._statistic(group).expand(len(group)) for group in x.split(self.group_size)])
        routed = (statistic.detach() > self.threshold).nonzero().flatten()
        images = x
        if len(routed):
            cleaned = self.rows(self._cleaned, x[routed], statistic[routed], noise.select(routed))
            images = x.index_copy(0, routed, cleaned)
        return Purified(images[None], {"statistic": statistic} if "statistic" in wants else {})

    def _statistic(self, group: Tensor) -> Tensor:
        mean = group.mean(0)
        return ((mean[:, 1:] - mean[:, :-1]).square().mean() + (mean[..., 1:] - mean[..., :-1]).square().mean())[None]

    def _cleaned(self, x: Tensor, statistic: Tensor, noise: NoiseStream) -> Tensor:
        excess = (statistic / self.threshold - 1.0)[:, None, None, None]
        noised = to_diffusion(x) + self.std * noise.normal(x.shape[1:], dtype=x.dtype)
        estimate = from_diffusion(self.denoiser(noised, torch.tensor(self.t, dtype=torch.float64)))
        return x + excess * (estimate - x)
