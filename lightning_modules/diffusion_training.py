"""Training of a diffusion model."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_modules.checks import check_fit
from lightning_modules.dropout import seed_dropout
from lightning_modules.module import LustralModule
from lightning_modules.optimisation import Interval, Optimisation
from lustral.diffusion import Denoiser, DiffusionLoss, SimpleLoss, to_diffusion
from lustral.noise import NoiseStream
from lustral.training import WarmupConstant

Batch = tuple[Tensor, Tensor, Tensor]


class DiffusionTraining(LustralModule):
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
        loss: None | DiffusionLoss = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=2e-4, fused=True),
        lr_scheduler: LRSchedulerCallable = lambda o: WarmupConstant(o, warmup=0.05),
        lr_interval: Interval = "step",
        channels_last: bool = False,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.denoiser, self.diffusion_loss = denoiser, loss or SimpleLoss()
        self.diffusion_loss.check(denoiser)
        self.optimisation = Optimisation(optimizer, lr_scheduler, lr_interval)
        self.seed = seed
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.denoiser.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        if compile:
            # The network inside the denoiser, since losses also call methods other than the denoiser's `forward`.
            getattr(self.denoiser, "network", self.denoiser).compile()

    @property
    def exported(self) -> Denoiser:
        """The network that is written to the weights file."""
        return self.denoiser

    def setup(self, stage: str) -> None:
        check_fit(getattr(self.trainer, "datamodule", None), [("denoiser", self.denoiser)])

    def loss(self, x: Tensor, noise: NoiseStream) -> Tensor:
        """(B,) losses of images ``x`` (B, C, H, W) in [0, 1]; ``noise`` has B rows."""
        x_0 = to_diffusion(x).contiguous(memory_format=self.memory_format)
        return self.diffusion_loss(self.denoiser, x_0, noise)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        seed_dropout(self.seed, self.trainer.fit_loop.total_batch_idx, self.global_rank)

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
        return self.optimisation.configured(self.parameters(), self.trainer)
