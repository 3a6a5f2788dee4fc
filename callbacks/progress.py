"""Progress of an evaluation whose single batch may last an hour: steps, robust accuracy so far, time left."""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lustral.evaluation import Expected, Record, read_records, wilson
from lustral.evaluation.audit import AUDIT


class InnerProgress(Callback):
    """A line that follows the attack step by step. On a terminal it is rewritten in place; in a log file a new one
    is printed every ``seconds``. Only the first process prints; it speaks of its own share of the images.

    Args:
        seconds: between two lines where output is no terminal.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        if seconds <= 0:
            raise ValueError(f"seconds is {seconds}; it must be positive.")
        self.seconds = seconds
        self._robust, self._judged = 0.0, 0
        self._batch, self._batches, self._worked, self._share = 0, 0, 0, 0.0
        self._start = self._printed = 0.0

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not hasattr(pl_module, "observe") or not trainer.is_global_zero:
            return
        pl_module.observe(self._observe)  # type: ignore[operator]
        self._batches = int(sum(trainer.num_test_batches))
        self._batch, self._worked, self._share, self._robust, self._judged = 0, 0, 0.0, 0.0, 0
        self._start, self._printed = time.monotonic(), 0.0
        self._tell_of_earlier_records(trainer, pl_module)

    def _tell_of_earlier_records(self, trainer: Trainer, pl_module: Any) -> None:
        """The running accuracy of a run that goes on begins with what was judged before."""
        wanted = set(trainer.datamodule.test_indices)  # type: ignore[attr-defined]
        if earlier := wanted & set(pl_module.finished):
            self._count(list(read_records(Path(trainer.default_root_dir) / "records", earlier).values()))
            self._print(f"{len(earlier)} images have a record already and are skipped", final=True)

    def _count(self, records: list[Record]) -> None:
        rule = Expected(len(records[0].adversarial_logits))
        for record in records:
            right = rule(record.adversarial_logits[:, None], torch.tensor([record.label]))
            self._robust += 0.0 if record.failed else float(right)
        self._judged += len(records)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._batch, self._share = batch_idx + 1, 0.0
        if outputs and trainer.is_global_zero:
            self._worked += 1
            self._count(outputs["records"])
            logger = trainer.logger
            if logger is not None:
                logger.log_metrics({"test/robust_so_far": self._robust / self._judged}, step=self._judged)
            self._print(self._line(None), final=not sys.stderr.isatty())

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self._judged and sys.stderr.isatty():
            self._print(self._line(None), final=True)

    def _observe(self, task: str, step: int, num_steps: int) -> None:
        if not task.startswith(AUDIT):
            self._share = step / num_steps  # an audit of a few images comes on top, and says so
        if sys.stderr.isatty() or time.monotonic() - self._printed >= self.seconds:
            self._print(self._line(f"{task} step {step}/{num_steps}"), final=not sys.stderr.isatty())

    def _line(self, task: str | None) -> str:
        parts = [f"batch {min(self._batch + (task is not None), self._batches)}/{self._batches}"]
        if task is not None:
            parts.append(task)
        if self._judged:
            parts.append(f"robust so far {wilson(self._robust, self._judged)} (n = {self._judged})")
        spent, worked = time.monotonic() - self._start, self._worked + self._share
        left = spent / worked * (self._batches - self._batch - self._share) if worked else 0.0
        parts.append(f"{_clock(spent)} spent" + (f", {_clock(left)} left" if left else ""))
        return " · ".join(parts)

    def _print(self, line: str, final: bool) -> None:
        self._printed = time.monotonic()
        ending = "\n" if final else ""
        start = "\r\x1b[2K" if sys.stderr.isatty() else ""
        print(start + line, end=ending, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
