"""Exponential moving average of the trained weights."""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class EMA(WeightAveraging):
    """Averages the trained weights; validation, checkpoints and the exported weights use the average.

    Lightning's `WeightAveraging` with three differences: the decay warms up, so that in a short run the random initial
    weights do not dominate the average, or follows EDM's half-life in images; frozen weights are copied, since
    averaging equal numbers still rounds; and integer buffers (batch-norm counters) are copied instead of being left
    unchanged.

    Args:
        decay: decay of the average per update, in [0, 1). The effective decay is min(decay, (1 + n) / (10 + n)) after n
            updates.
        half_life: in images, instead of ``decay``: the decay per update is 0.5^(images per update / half_life)
            (Karras et al. 2022; 500,000 for CIFAR-10).
        ramp: with ``half_life``, which is limited to this share of the images seen so far (theirs: 0.05).

    Raises:
        ValueError: if not exactly one of decay and half_life is given, or a number is out of its range.
    """

    def __init__(self, decay: None | float = None, half_life: None | int = None, ramp: float = 0.05) -> None:
        if (decay is None) == (half_life is None):
            raise ValueError(
                f"EMA takes a decay or a half_life in images, and not both: {decay} and {half_life} are given."
            )
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"EMA decay is {decay}; it lies in [0, 1).")
        if (half_life is not None and half_life <= 0) or ramp <= 0:
            raise ValueError(f"EMA half_life is {half_life} and ramp {ramp}; both must be positive.")
        self.decay, self.half_life, self.ramp = decay, half_life, ramp
        self._images_an_update = 0
        super().__init__(use_buffers=True, multi_avg_fn=self._average)

    def _average(self, averages: list[Tensor], currents: list[Tensor], updates: Tensor) -> None:
        """Move ``averages``, all of one type and device, towards ``currents``."""
        if not averages[0].is_floating_point():
            torch._foreach_copy_(averages, currents)  # type: ignore[attr-defined]
            return
        n = updates.to(averages[0].dtype)
        if self.decay is not None:
            kept = torch.clamp((1.0 + n) / (10.0 + n), max=self.decay)
        else:
            assert self.half_life is not None
            half_life = torch.clamp(self.ramp * n * self._images_an_update, max=self.half_life)
            kept = 0.5 ** (self._images_an_update / half_life.clamp_min(1e-8))
        torch._foreach_lerp_(averages, currents, [1.0 - kept] * len(averages))  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        low = [
            p.dtype for p in pl_module.parameters() if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)
        ]
        if low:
            raise ValueError(
                f"The weights are {low[0]}, in which a decay near 1 rounds to 1 and the average never moves: set "
                "trainer.precision to bf16-mixed, which keeps the weights in float32."
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        images = len(batch[0]) if isinstance(batch, (tuple, list)) else len(batch)  # type: ignore[arg-type]
        self._images_an_update = images * trainer.world_size * trainer.accumulate_grad_batches
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)  # type: ignore[arg-type]
        assert self._average_model is not None
        with torch.no_grad():
            pairs = zip(self._average_model.module.parameters(), pl_module.parameters(), strict=True)
            for average, current in pairs:
                if not current.requires_grad:
                    average.copy_(current)
