"""Training of a diffusion model."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_modules.denoising_training import DenoisingTraining
from lightning_modules.optimisation import Interval
from lustral.diffusion import Denoiser, PosteriorLoss, SimpleLoss
from lustral.noise import NoiseStream
from lustral.training import WarmupConstant


class DiffusionTraining(DenoisingTraining):
    """A denoiser and the loss that trains it.

    Times and noise are keyed by (seed, sample, step), so they do not depend on how a run is sharded, and validation
    uses the same (t, noise) for every image in every epoch. Dropout draws from the global generator, which is reseeded
    at each step, so that a resumed training has the same bits as one that was not interrupted.

    Args:
        denoiser: the network; exported as ``weights.safetensors`` when training ends.
        loss: SimpleLoss (noise prediction; the default), HybridLoss (learned variance too) or EDMLoss.
        optimizer: any of torch.optim, or your own, with its options.
        lr_scheduler: learning-rate schedule: lustral.training.WarmupConstant (as published models were trained),
            WarmupCosine, or any of torch.optim.lr_scheduler.
        lr_interval: whether the schedule advances after every "step" (of the optimiser) or every "epoch".
        channels_last: keep images and weights in channels-last memory format, which speeds up convolutions in half
            precision on a GPU.
        compile: compile the network (`torch.compile`); weights and results keep their names.
        seed: of times, noise and dropout.
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        "predict": "A diffusion model has no classes to predict: look at its samples with `python cli.py test` and a "
        "second -c configs/quality/digits.yaml.",
    }

    def __init__(
        self,
        denoiser: Denoiser,
        loss: None | PosteriorLoss = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=2e-4, fused=True),
        lr_scheduler: LRSchedulerCallable = lambda o: WarmupConstant(o, warmup=0.05),
        lr_interval: Interval = "step",
        channels_last: bool = False,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        self.diffusion_loss = loss or SimpleLoss()
        super().__init__(
            denoiser, self.diffusion_loss, optimizer, lr_scheduler, lr_interval, channels_last, compile, seed
        )

    def descended(self, x_0: Tensor, noise: NoiseStream) -> Tensor:
        return self.diffusion_loss(self.denoiser, x_0, noise)
