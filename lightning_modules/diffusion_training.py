"""Training of a diffusion model."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_modules.checks import check_fit
from lightning_modules.schedules import warmup_cosine
from lustral.diffusion import DiscreteSchedule, VPSchedule, to_diffusion
from lustral.diffusion.schedules import MAX_TIME
from lustral.networks import NoisePredictor
from lustral.noise import NoiseStream

Batch = tuple[Tensor, Tensor, Tensor]


class DiffusionTraining(LightningModule):
    """Noise prediction, the simple loss of Ho et al. (2020): mean of |eps - eps(x_t, t)|^2 over t and pixels.

    Times are uniform: whole ones in 1..1000 on the discrete schedule, real ones on the continuous (Song et al.
    2021). Times and noise are keyed by (seed, sample, step), so a run does not depend on how it is sharded, and
    validation sees the same grid of (t, noise) at every epoch.

    Args:
        denoiser: the network; exported as ``weights.safetensors`` when training ends.
        lr: the highest learning rate (Adam).
        warmup: share of the steps over which the learning rate rises.
        cosine: whether a cosine takes the learning rate to zero; else it stays (as published models were trained).
        seed: of times and noise.
    """

    def __init__(
        self, denoiser: NoisePredictor, lr: float = 2e-4, warmup: float = 0.05, cosine: bool = False, seed: int = 0
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.lr, self.warmup, self.cosine, self.seed = lr, warmup, cosine, seed

    @property
    def exported(self) -> NoisePredictor:
        """What the weights file holds."""
        return self.denoiser

    def setup(self, stage: str) -> None:
        check_fit(getattr(self.trainer, "datamodule", None), [("denoiser", self.denoiser)])

    def loss(self, x: Tensor, noise: NoiseStream) -> Tensor:
        """(B,) squared error of the predicted noise, mean over pixels, of [0, 1] images ``x``."""
        t = self._times(noise.fork("time").uniform((), dtype=torch.float64))
        eps = noise.fork("noise").normal(x.shape[1:], dtype=x.dtype)
        x_t = self.denoiser.schedule.perturb(to_diffusion(x), t, eps)
        return (self.denoiser.predict_noise_at(x_t, t) - eps).square().flatten(1).mean(1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, _, index = batch
        loss = self.loss(x, NoiseStream(self.seed, index).fork("train").at(iteration=self.global_step)).mean()
        self.log("train/loss", loss, batch_size=len(x))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        x, _, index = batch
        loss = self.loss(x, NoiseStream(self.seed, index).fork("validation")).mean()
        self.log("val/loss", loss, batch_size=len(x), prog_bar=True, sync_dist=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        x, _, index = batch
        loss = self.loss(x, NoiseStream(self.seed, index).fork("test")).mean()
        self.log("test/loss", loss, batch_size=len(x), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], self.lr, fused=True)
        return warmup_cosine(optimizer, self.warmup, int(self.trainer.estimated_stepping_batches), self.cosine)

    def _times(self, uniform: Tensor) -> Tensor:
        """Uniform draws in (0, 1) as times of the denoiser's schedule."""
        if isinstance(self.denoiser.schedule, DiscreteSchedule):
            return (uniform * MAX_TIME).ceil().clamp(1, MAX_TIME)
        return VPSchedule.FINAL_TIME + uniform * (MAX_TIME - VPSchedule.FINAL_TIME)
