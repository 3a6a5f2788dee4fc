"""What the trainings of diffusion models and of consistency models share."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_modules.checks import check_fit
from lightning_modules.dropout import seed_dropout
from lightning_modules.module import LustralModule
from lightning_modules.optimisation import Interval, Optimisation
from lustral.diffusion import Denoiser, DiffusionLoss, to_diffusion
from lustral.noise import NoiseStream

Batch = tuple[Tensor, Tensor, Tensor]


class DenoisingTraining(LustralModule, ABC):
    """A denoiser and the loss that trains it; a subclass gives `descended`.

    Args:
        denoiser: the network; exported as ``weights.safetensors`` when training ends.
        loss: what it descends.
        optimizer, lr_scheduler, lr_interval: see `Optimisation`.
        channels_last: keep images and weights in channels-last memory format.
        compile: compile the network.
        seed: of times, noise and dropout.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        loss: DiffusionLoss,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable,
        lr_interval: Interval,
        channels_last: bool,
        compile: bool,
        seed: int,
    ) -> None:
        super().__init__()
        loss.check(denoiser)
        self.denoiser = denoiser
        self.optimisation = Optimisation(optimizer, lr_scheduler, lr_interval)
        self.seed = seed
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.denoiser.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        if compile:
            compile_network(denoiser)

    @property
    def exported(self) -> Denoiser:
        """The network that is written to the weights file."""
        return self.denoiser

    def setup(self, stage: str) -> None:
        check_fit(getattr(self.trainer, "datamodule", None), [("denoiser", self.denoiser)])

    @abstractmethod
    def descended(self, x_0: Tensor, noise: NoiseStream) -> Tensor:
        """(B,) losses of images ``x_0`` (B, C, H, W) in diffusion space; ``noise`` has B rows."""

    def loss(self, x: Tensor, noise: NoiseStream) -> Tensor:
        """(B,) losses of images ``x`` (B, C, H, W) in [0, 1]; ``noise`` has B rows."""
        return self.descended(to_diffusion(x).contiguous(memory_format=self.memory_format), noise)

    def seed_dropout(self) -> None:
        """Seed dropout for the present step of training."""
        seed_dropout(self.seed, self.trainer.fit_loop.total_batch_idx, self.global_rank)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.seed_dropout()

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


def compile_network(denoiser: Denoiser) -> None:
    """Compile the network inside the denoiser, since losses also call methods other than the denoiser's `forward`."""
    getattr(denoiser, "network", denoiser).compile()
