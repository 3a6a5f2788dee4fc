"""What a diffusion model or a one-step generator draws: a picture in TensorBoard, and a file in the run folder."""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchvision.utils import make_grid, save_image

from lustral.diffusion import Ancestral, Denoiser, Generator, Solver, generated
from lustral.diffusion.sampling import sample
from lustral.noise import NoiseStream

SMALLEST_SIDE = 48
"""Pixels that an image has at least on the sheet; smaller ones are enlarged by a whole factor."""


class SampleGrid(Callback):
    """Draws samples whenever a diffusion model or a generator (of a GAN) is validated or tested, with averaged weights
    where there is an `EMA`.

    The picture goes to TensorBoard (``val/samples``, ``test/samples``) and to ``samples.png`` in the run folder.
    Sample k has the same noise at every epoch, so that a slider through the epochs shows the same images improve.

    Args:
        solver: the reverse step; None is Ancestral, which follows every schedule. A generator has none.
        num_steps: reverse steps, from pure noise; a generator takes one network call.
        num_images: how many, drawn by the first process.
        every_n_epochs: of the validations while training, those after an epoch that this divides.
        rows: samples a network call.
        seed: of the samples' noise.
        label: tells this from another of the kind: with one_step, ``val/one_step_samples`` and
            ``samples_one_step.png``.

    Raises:
        ValueError: if a number is out of its range, or this stands before the `EMA` in trainer.callbacks.
    """

    def __init__(
        self,
        solver: None | Solver = None,
        num_steps: int = 50,
        num_images: int = 64,
        every_n_epochs: int = 1,
        rows: int = 128,
        seed: int = 0,
        label: str = "",
    ) -> None:
        numbers = {"num_steps": num_steps, "num_images": num_images, "every_n_epochs": every_n_epochs, "rows": rows}
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"{name} is {number}; {type(self).__name__} needs at least 1.")
        self.solver, self.num_steps, self.num_images = solver, num_steps, num_images
        self.every_n_epochs, self.rows, self.seed, self.label = every_n_epochs, rows, seed, label

    def key(self, stage: str, name: str) -> str:
        """The name of a picture or number in TensorBoard."""
        return f"{stage}/{self.label}_{name}" if self.label else f"{stage}/{name}"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        denoiser, generator = (getattr(pl_module, name, None) for name in ("denoiser", "generator"))
        if isinstance(denoiser, Denoiser):
            (self.solver or Ancestral()).check(denoiser)
        elif not isinstance(generator, Generator):
            raise ValueError(
                f"{type(self).__name__} draws samples of a diffusion model, but {type(pl_module).__name__} has "
                "none, nor a generator: take it out of trainer.callbacks."
            )
        elif self.solver is not None:
            raise ValueError(
                f"{type(self).__name__} is given the solver {type(self.solver).__name__}, but a generator draws in one "
                "network call: leave out solver."
            )
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(later, WeightAveraging) for later in callbacks[callbacks.index(self) :]):
            raise ValueError(
                f"{type(self).__name__} stands before the averaging of weights in trainer.callbacks and would draw "
                "from weights that are not averaged: name EMA first."
            )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # At the start, for at the end an EMA that stands before this has put the other weights back.
        fitting = trainer.state.fn == TrainerFn.FITTING
        due = not fitting or (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and not trainer.sanity_checking:
            self.act(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.act(trainer, pl_module, "test")

    def act(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Draw and show; ``stage`` is val or test."""
        if trainer.is_global_zero:
            self.show(trainer, self.draw(pl_module, torch.arange(self.num_images)), stage)

    def draw(self, pl_module: LightningModule, numbers: Tensor) -> Tensor:
        """(n, C, H, W) in [0, 1], the samples with these numbers, (n,) int64."""
        noise = NoiseStream(self.seed, numbers.to(pl_module.device)).fork("samples")
        if isinstance(generator := getattr(pl_module, "generator", None), Generator):
            return generated(generator, noise, self.rows)
        denoiser: Any = pl_module.denoiser
        return sample(denoiser, noise, self.solver or Ancestral(), self.num_steps, rows=self.rows)

    def show(self, trainer: Trainer, images: Tensor, stage: str) -> None:
        """Put a sheet of ``images`` where it can be looked at."""
        picture = sheet(images.float().cpu())
        path = Path(trainer.default_root_dir) / (f"samples_{self.label}.png" if self.label else "samples.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(picture, path)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(self.key(stage, "samples"), picture, trainer.global_step)


def sheet(images: Tensor) -> Tensor:
    """(3, H', W') in [0, 1]: ``images`` (n, C, H, W), C = 1 or 3, in a grid that is about square, row by row, a thin
    white line around each; what stays free is white."""
    factor = max(1, -(-SMALLEST_SIDE // min(images.shape[2:])))
    return make_grid(F.interpolate(images, scale_factor=factor), math.ceil(math.sqrt(len(images))), pad_value=1.0)
