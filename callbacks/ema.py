"""Exponential moving average of the weights that are trained."""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class EMA(WeightAveraging):
    """Averages the trained weights; validation, checkpoints and the exported weights use the average.

    Lightning's `WeightAveraging` with three differences: the decay warms up, so that a short run is not an average
    with its random start; frozen weights are copied, since averaging equal numbers still rounds; and integer
    buffers (batch-norm counters) are copied instead of going stale.

    Args:
        decay: of the average, an update. The effective decay is min(decay, (1 + n) / (10 + n)) after n updates.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay is {decay}; it lies in [0, 1).")
        self.decay = decay
        super().__init__(use_buffers=True, avg_fn=self._average)

    def _average(self, average: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
        if not current.is_floating_point():
            return current
        n = torch.as_tensor(updates, dtype=average.dtype, device=average.device)
        weight = 1.0 - torch.clamp((1.0 + n) / (10.0 + n), max=self.decay)
        return torch.lerp(average, current, weight)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)  # type: ignore[arg-type]
        assert self._average_model is not None
        with torch.no_grad():
            pairs = zip(self._average_model.module.parameters(), pl_module.parameters(), strict=True)
            for average, current in pairs:
                if not current.requires_grad:
                    average.copy_(current)
