"""Progress of an evaluation whose single batch may last an hour: steps, robust accuracy so far, time left."""

import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lustral.evaluation import Expected, Record, wilson


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
        self._batch, self._batches = 0, 0
        self._start = self._printed = 0.0

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not hasattr(pl_module, "observe") or not trainer.is_global_zero:
            return
        pl_module.observe(self._observe)  # type: ignore[operator]
        self._batches = int(sum(trainer.num_test_batches))
        self._batch, self._robust, self._judged = 0, 0.0, 0
        self._start, self._printed = time.monotonic(), 0.0
        done = len(pl_module.finished)  # type: ignore[arg-type]
        if done:
            self._print(f"{done} images have a record already and are skipped", final=True)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._batch = batch_idx + 1
        if outputs and trainer.is_global_zero:
            records: list[Record] = outputs["records"]
            rule = Expected(len(records[0].adversarial_logits))
            for record in records:
                right = rule(record.adversarial_logits[:, None], _label(record))
                self._robust += 0.0 if record.failed else float(right)
            self._judged += len(records)
            logger = trainer.logger
            if logger is not None:
                logger.log_metrics({"test/robust_so_far": self._robust / self._judged}, step=self._judged)
            self._print(self._line(None, 0.0), final=not sys.stderr.isatty())

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self._judged and sys.stderr.isatty():
            self._print(self._line(None, 0.0), final=True)

    def _observe(self, task: str, step: int, num_steps: int) -> None:
        if sys.stderr.isatty() or time.monotonic() - self._printed >= self.seconds:
            self._print(self._line(f"{task} step {step}/{num_steps}", step / num_steps), final=not sys.stderr.isatty())

    def _line(self, task: str | None, share: float) -> str:
        parts = [f"batch {min(self._batch + (task is not None), self._batches)}/{self._batches}"]
        if task is not None:
            parts.append(task)
        if self._judged:
            parts.append(f"robust so far {wilson(self._robust, self._judged)} (n = {self._judged})")
        spent, done = time.monotonic() - self._start, self._batch + share
        left = spent / done * (self._batches - done) if done else 0.0
        parts.append(f"{_clock(spent)} spent" + (f", {_clock(left)} left" if left else ""))
        return " · ".join(parts)

    def _print(self, line: str, final: bool) -> None:
        self._printed = time.monotonic()
        ending = "\n" if final else ""
        start = "\r\x1b[2K" if sys.stderr.isatty() else ""
        print(start + line, end=ending, file=sys.stderr, flush=True)


def _label(record: Record) -> torch.Tensor:
    return torch.tensor([record.label])


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
