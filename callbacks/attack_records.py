"""Writes a record for every judged image as soon as it is finished, and skips images that have one."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from callbacks.heartbeat import Heartbeat
from lustral.evaluation import Fingerprint, KeyedRecord, RecordFolder


class AttackRecords(Callback):
    """Writes ``records/`` and ``cost/`` in the run folder, for modules that have a fingerprint and produce records.

    Processes do not wait for each other: each writes shards of its own, and the card is made from all of them after
    the test loop has returned. If there are several, each has a `Heartbeat`.

    Attributes:
        fingerprint: the evaluation's fingerprint, after the folder has accepted it; before, nothing is written there.
        start: a name that all processes of this start share.
    """

    def __init__(self) -> None:
        self.folder: RecordFolder | None = None
        self.fingerprint: Fingerprint | None = None
        self.start = ""
        self._heartbeat: Heartbeat | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.start = trainer.strategy.broadcast(f"{time.time_ns():x}-{os.getpid():x}")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fingerprint = getattr(pl_module, "fingerprint", None)
        if fingerprint is None:
            return
        run, rank = Path(trainer.default_root_dir), trainer.global_rank
        records, found = run / "records", fingerprint()
        if (records / "fingerprint.json").exists():
            RecordFolder(records, found, rank)  # refuses another evaluation's folder before the costlier self-check
        rank_zero_info("checking that no image's bits depend on its neighbours")
        pl_module.check()  # type: ignore[operator]  # before the folder is claimed, in case it refuses
        self.folder, self.fingerprint = RecordFolder(records, found, rank), found
        pl_module.finished = frozenset(self.folder.keys())  # type: ignore[assignment]
        cost = run / "cost" / f"rank{rank}-{time.time_ns():x}-{os.getpid():x}.json"
        pl_module.hand_on(lambda records: self._keep(records, pl_module, cost))  # type: ignore[operator]
        if trainer.world_size > 1:
            self._heartbeat = Heartbeat(run, self.start, rank)
            self._heartbeat.start()

    def _keep(self, records: Sequence[KeyedRecord], module: Any, file: Path) -> None:
        """Write ``records``, and the cost of all records of this process so far, so that both survive if it is
        killed."""
        assert self.folder is not None
        self.folder.append(records)
        file.parent.mkdir(exist_ok=True)
        partial = file.with_name(f".{file.name}")
        partial.write_text(json.dumps(module.evaluator.cost.line()) + "\n")
        partial.replace(file)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.folder is not None:
            self.folder.close()
        self._rest()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._rest()

    def _rest(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None
