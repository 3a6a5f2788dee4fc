"""Progress of an evaluation whose single step may last an hour: what it does, robust accuracy so far, time left."""

import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.ticker import Ticker
from lustral.evaluation import Dealing, Expected, Key, Record, read_records, wilson


class InnerProgress(Callback):
    """A line that follows the evaluation. On a terminal it is rewritten in place, every second; in a log file a new one
    is printed every ``seconds``, whatever the evaluation is at: a thread of its own looks at the clock. Only the first
    process prints; it speaks of its own share of the images.

    Args:
        seconds: between two lines where output is no terminal.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        if seconds <= 0:
            raise ValueError(f"seconds is {seconds}; it must be positive.")
        self.seconds = seconds
        self._robust, self._judged = 0.0, 0
        self._todo, self._done, self._share = 0, 0, 0.0
        self._alone = True
        self._task, self._since = "starting", 0.0
        self._start = self._printed = 0.0
        self._module: Any = None
        self._lock = threading.Lock()
        self._ticker = Ticker(min(1.0, seconds), self._tick)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not hasattr(pl_module, "observe") or not trainer.is_global_zero:
            return
        self._module = pl_module
        self._robust, self._judged, self._done, self._share = 0.0, 0, 0, 0.0
        dealing: Dealing = pl_module.dealing  # type: ignore[assignment]
        self._alone = dealing.size == 1
        own = dealing.shares(trainer.world_size)[trainer.global_rank]
        self._todo = len(dealing.unfinished(own, self._module.finished))
        self._start = self._printed = time.monotonic()
        again = dealing.unfinished(dealing.keys, self._module.finished)
        self._tell_of_earlier_records(Path(trainer.default_root_dir), set(dealing.keys) - again)
        self._observe("first images", 0, 1)
        self._module.observe(self._observe)
        self._module.hand_on(lambda records: self._record(records, trainer))
        self._ticker.start()

    def _tell_of_earlier_records(self, run: Path, earlier: set[Key]) -> None:
        """The running accuracy of a run that goes on begins with what was judged before."""
        if earlier:
            self._count(list(read_records(run / "records", earlier).values()))
            self._print(f"{len(earlier)} images have a record already and are skipped", final=True)

    def _count(self, records: Sequence[Record]) -> None:
        rule = Expected(len(records[0].adversarial_logits))
        for record in records:
            right = rule(record.adversarial_logits[:, None], torch.tensor([record.label]))
            self._robust += 0.0 if record.failed else float(right)
        self._judged += len(records)

    def _record(self, records: Sequence[Record], trainer: Trainer) -> None:
        self._done, self._share = self._done + len(records), 0.0
        self._count(records)
        if trainer.logger is not None:
            trainer.logger.log_metrics({"test/robust_so_far": self._robust / self._judged}, step=self._judged)
        self._observe("next images", 0, 1)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ticker.stop()
        if self._module is not None and self._judged:
            self._task = ""
            self._print(self._line(), final=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._ticker.stop()

    def _observe(self, task: str, step: int, num_steps: int) -> None:
        if not self._done and task == self._module.evaluator.attack.name:
            # A first guess at the time; later the images that are done tell it.
            self._share = self._module.in_work * step / num_steps
        if task != self._task.partition(" · ")[0]:
            self._since = time.monotonic()
        self._task = task if num_steps <= 1 else f"{task} · {step}/{num_steps}"

    def _tick(self) -> None:
        terminal = sys.stderr.isatty()
        if terminal or time.monotonic() - self._printed >= self.seconds:
            self._print(self._line(), final=not terminal)

    def _line(self) -> str:
        now = time.monotonic()
        parts = [f"{self._done}/{self._todo} images"]
        if self._task:
            parts += [self._task, f"{_clock(now - self._since)} at it"]
        if self._judged:
            share = f"{100 * self._robust / self._judged:.1f} %"
            # Images that are judged together are not independent: no interval before the card's.
            robust = str(wilson(self._robust, self._judged)) if self._alone else share
            parts.append(f"robust so far {robust} (n = {self._judged})")
        spent, worked = now - self._start, self._done or self._share
        left = spent / worked * (self._todo - worked) if worked else 0.0
        parts.append(f"{_clock(spent)} spent" + (f", {_clock(left)} left" if left >= 1 else ""))
        return " · ".join(parts)

    def _print(self, line: str, final: bool) -> None:
        with self._lock:
            self._printed = time.monotonic()
            start = ""
            if sys.stderr.isatty():  # a line that wraps could not be rewritten
                start, line = "\r\x1b[2K", line[: shutil.get_terminal_size().columns - 1]
            print(start + line, end="\n" if final else "", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
