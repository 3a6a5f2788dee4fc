"""Training of a generative adversarial network."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_modules.checks import check_fit
from lightning_modules.module import LustralModule
from lightning_modules.optimisation import Interval, Optimisation
from lustral.diffusion import Generator
from lustral.networks import GANDiscriminator
from lustral.noise import NoiseStream
from lustral.training import WarmupConstant, gan_losses, gradient_penalty

Batch = tuple[Tensor, Tensor, Tensor]


class GANTraining(LustralModule):
    """A generator and a discriminator that train each other: the non-saturating losses with the R1 penalty.

    Both networks take their step at once, from one backward pass and by one optimiser, whose options then hold for
    both. Latents are keyed by seed, sample and step. The discriminator is part of checkpoints, but not of the weights
    file.

    Args:
        generator: the network; exported as ``weights.safetensors`` when training ends.
        discriminator: its opponent.
        penalty: gamma, the factor of R1, for images in [0, 1]; not negative.
        optimizer: any of torch.optim, or your own, with its options. Without memory of the gradient (betas[0]: 0), for
            the loss of one network moves with the other.
        lr_scheduler: learning-rate schedule.
        lr_interval: whether the schedule advances after every "step" (of the optimiser) or every "epoch".
        seed: of the latents.

    Raises:
        ValueError: if the penalty is negative, or the networks have images of different shapes.
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        "predict": "A generator has no classes to predict: look at its samples with `python cli.py test` and a second "
        "-c configs/quality/digits_gan.yaml.",
    }

    def __init__(
        self,
        generator: Generator,
        discriminator: GANDiscriminator,
        penalty: float = 1.0,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=2e-3, betas=(0.0, 0.99)),
        lr_scheduler: LRSchedulerCallable = lambda o: WarmupConstant(o, warmup=0.0),
        lr_interval: Interval = "step",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if penalty < 0:
            raise ValueError(f"penalty is {penalty}; the factor of R1 cannot be negative.")
        if tuple(generator.image_shape) != tuple(discriminator.image_shape):
            raise ValueError(
                f"The generator's images are of shape {tuple(generator.image_shape)}, the discriminator's of "
                f"{tuple(discriminator.image_shape)} (C, H, W): set image_size and channels of both alike."
            )
        self.generator, self.discriminator, self.penalty, self.seed = generator, discriminator, penalty, seed
        self.optimisation = Optimisation(optimizer, lr_scheduler, lr_interval)

    @property
    def exported(self) -> Generator:
        """The network that is written to the weights file."""
        return self.generator

    def setup(self, stage: str) -> None:
        check_fit(getattr(self.trainer, "datamodule", None), [("generator", self.generator)])

    def latents(self, noise: NoiseStream) -> Tensor:
        """(B, *latent_shape), one for each of the B rows of ``noise``."""
        return self.generator.latent_std * noise.fork("latents").normal(self.generator.latent_shape)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, _, index = batch
        z = self.latents(NoiseStream(self.seed, index).fork("train").at(iteration=self.global_step))
        losses = gan_losses(self.generator, self.discriminator, x, z)
        penalty = gradient_penalty(self.discriminator, x, self.penalty).mean()
        fooling, telling = (each.mean() for each in losses)
        logged = {"train/generator": fooling, "train/discriminator": telling, "train/penalty": penalty}
        self.log_dict(logged, batch_size=len(x))
        return fooling + telling + penalty

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._measure(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Nothing is measured of the discriminator, which no weights file has; callbacks draw samples."""

    def _measure(self, batch: Batch, stage: str) -> None:
        """The discriminator's loss of images that it was not trained on: log 4 where it cannot tell them apart."""
        x, _, index = batch
        losses = gan_losses(
            self.generator, self.discriminator, x, self.latents(NoiseStream(self.seed, index).fork(stage))
        )
        logged = {f"{stage}/generator": losses.fooling.mean(), f"{stage}/discriminator": losses.telling.mean()}
        self.log_dict(logged, batch_size=len(x), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return self.optimisation.configured(self.parameters(), self.trainer)
