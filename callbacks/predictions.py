"""The output files of `cli.py predict`."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter


class Predictions(BasePredictionWriter):
    """Writes ``predictions-rank<r>.csv`` into the run folder: index in the full split, label, predicted class. The file
    gets its name only when it is complete."""

    def __init__(self) -> None:
        super().__init__(write_interval="batch")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the files of an earlier run, which may have had more processes."""
        if trainer.is_global_zero:
            for path in Path(trainer.default_root_dir).glob("predictions-rank*.csv"):
                path.unlink()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        _, labels, index = batch[:3]
        path = _partial(trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w" if batch_idx == 0 else "a", newline="") as file:
            writer = csv.writer(file)
            if batch_idx == 0:
                writer.writerow(("index", "label", "prediction"))
            writer.writerows(zip(index.tolist(), labels.tolist(), prediction.tolist(), strict=True))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _partial(trainer).exists():  # a process may have had nothing to do
            _partial(trainer).replace(Path(trainer.default_root_dir) / f"predictions-rank{trainer.global_rank}.csv")


def _partial(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / f".predictions-rank{trainer.global_rank}.csv"
