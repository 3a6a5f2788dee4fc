"""Stops a training at the first loss that is NaN or Inf."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class FiniteLoss(Callback):
    """Raises an error that names the first batch whose loss is NaN or Inf.

    The number of the first bad batch is kept on the device, and read only every ``every_n_steps`` batches, since
    reading synchronises with the device.

    Args:
        every_n_steps: number of batches between two readings.
    """

    def __init__(self, every_n_steps: int = 20) -> None:
        self.every_n_steps = every_n_steps
        self._first_bad: Tensor | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"].detach()
        if self._first_bad is None:
            self._first_bad = torch.full_like(loss, -1, dtype=torch.int64)
        is_new = ~loss.isfinite() & (self._first_bad < 0)
        self._first_bad = torch.where(is_new, batch_idx, self._first_bad)
        if (batch_idx + 1) % self.every_n_steps == 0 or trainer.is_last_batch:
            first = int(self._first_bad)
            if first >= 0:
                raise ValueError(
                    f"The loss became NaN or Inf in batch {first} of epoch {trainer.current_epoch} (seed and sampler "
                    "give the same batch again): lower model.optimizer.lr, clip gradients with "
                    "trainer.gradient_clip_val, or look at that batch's data."
                )
