"""Write a record for every judged image as soon as there is one, and skip those that have one."""

import json
import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lustral.evaluation import RecordFolder


class AttackRecords(Callback):
    """Keeps ``records/`` and ``cost/`` in the run folder. Acts on modules that return records.

    No process waits for another here: each writes shards of its own, and the card is made from all of them after
    the loop has returned.
    """

    def __init__(self) -> None:
        self.folder: RecordFolder | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fingerprint = getattr(pl_module, "fingerprint", None)
        if fingerprint is None:
            return
        records, decides = Path(trainer.default_root_dir) / "records", fingerprint()
        if (records / "fingerprint.json").exists():
            RecordFolder(records, decides, trainer.global_rank)  # another evaluation's is refused first: it is cheap
        pl_module.check()  # type: ignore[operator]  # and what is about to be refused claims no folder
        self.folder = RecordFolder(records, decides, trainer.global_rank)
        pl_module.finished = frozenset(self.folder.indices())  # type: ignore[assignment]

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.folder is not None and outputs:
            self.folder.append(outputs["records"])

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.folder is None:
            return
        self.folder.close()
        cost: Any = pl_module.evaluator.cost  # type: ignore[union-attr]
        if cost.images:
            folder = Path(trainer.default_root_dir) / "cost"
            folder.mkdir(exist_ok=True)
            name = f"rank{trainer.global_rank}-{time.time_ns():x}-{os.getpid():x}.json"
            partial = folder / f".{name}"
            partial.write_text(json.dumps(vars(cost)) + "\n")
            partial.replace(folder / name)
