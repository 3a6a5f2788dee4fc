"""Progress of an evaluation whose single step may last an hour: what it does, accuracy so far, time left."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from callbacks.ticker import Ticker
from lustral.evaluation import Dealing, Key, KeyedRecord, read_records, wilson

BAR = 24
"""Columns of a bar."""


class InnerProgress(Callback):
    """Lines that follow the evaluation. On a terminal they are drawn again in place every second, with bars; in a log
    file a new line is printed every ``seconds``, whatever the evaluation is at: a thread of its own looks at the clock.
    Only the first process prints; it speaks of its own share of the images.

    Args:
        seconds: between two lines where output is no terminal.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        if seconds <= 0:
            raise ValueError(f"seconds is {seconds}; it must be positive.")
        self.seconds = seconds
        self._right, self._judged = 0.0, 0
        self._todo, self._done, self._share = 0, 0, 0.0
        self._alone = True
        self._task, self._step, self._num_steps, self._since = "starting", 0, 1, 0.0
        self._start = self._printed = 0.0
        self._module: Any = None
        self._live: Live | None = None
        self._ticker = Ticker(min(1.0, seconds), self._tick)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not hasattr(pl_module, "observe") or not trainer.is_global_zero:
            return
        self._module = pl_module
        self._right, self._judged, self._done, self._share = 0.0, 0, 0, 0.0
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
        self._live = self._on_terminal()
        self._ticker.start()

    def _on_terminal(self) -> Live | None:
        """What draws in place, under whatever else is printed; None where nothing can be."""
        console = Console(stderr=True, highlight=False)
        # Where FORCE_COLOR is set, rich takes a log for a terminal too.
        if not (sys.stderr.isatty() and console.is_interactive):
            return None
        # What goes to standard output stands above the lines too, unless it goes to a file.
        above = sys.stdout.isatty()
        live = Live(
            console=console,
            get_renderable=self._drawn,
            auto_refresh=False,  # the ticker does it, and can be stopped without a lock
            transient=True,
            redirect_stdout=above,
        )
        live.start(refresh=True)
        console.show_cursor()  # a process that is killed could not bring it back
        return live

    def _tell_of_earlier_records(self, run: Path, earlier: set[Key]) -> None:
        """The running accuracy of a run that goes on begins with what was judged before."""
        if earlier:
            self._count(list(read_records(run / "records", earlier, self._module.record_type).values()))
            self._print(f"{len(earlier)} images have a record already and are skipped")

    def _count(self, records: Sequence[KeyedRecord]) -> None:
        self._judged += len(records)  # first, for the ticker may look at any time: never more right than judged
        self._right += sum(map(self._module.tally, records))

    def _record(self, records: Sequence[KeyedRecord], trainer: Trainer) -> None:
        self._done, self._share = self._done + len(records), 0.0
        self._count(records)
        if trainer.logger is not None:
            trainer.logger.log_metrics(
                {f"test/{self._module.so_far}_so_far": self._right / self._judged}, step=self._judged
            )
        self._observe("next images", 0, 1)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()
        self._task = ""
        if self._module is not None and self._judged:
            self._print(self._line())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._close():
            self._print(self._line())  # in place of what was drawn: how far it came

    def _close(self) -> bool:
        """Print and draw nothing any more, and wipe what was drawn; returns whether anything was."""
        self._ticker.stop()
        live, self._live = self._live, None
        if live is not None:
            live.stop()
        return live is not None

    def freeze(self) -> None:
        """Leave the screen to another thread that ends the process: what stands there stays, and nothing is drawn.

        Waits for no lock for long: the main thread may hold them.
        """
        self._ticker.stop(seconds=0.5)
        self._live = None

    def _observe(self, task: str, step: int, num_steps: int) -> None:
        if not self._done and task == self._module.main_task:
            # A first guess at the time; later the images that are done tell it.
            self._share = self._module.in_work * step / num_steps
        if task != self._task:
            self._since = time.monotonic()
        self._task, self._step, self._num_steps = task, step, num_steps

    def _tick(self) -> None:
        live = self._live
        if live is not None:
            live.refresh()
        elif time.monotonic() - self._printed >= self.seconds:
            self._print(self._line())

    def _drawn(self) -> RenderableType:
        """A bar of the images, a bar of the task's steps, and the accuracy so far."""
        images, task, right, times = self._said()
        steps = ProgressBar(self._num_steps, self._step, width=BAR) if task and self._num_steps > 1 else " " * BAR
        lines = Table.grid(padding=(0, 2))
        lines.add_row(ProgressBar(self._todo, self._worked, width=BAR), Text(f"{images} · {times}"))
        lines.add_row(steps, Text(task))
        if right:
            lines.add_row("", Text(right))
        return lines

    def _line(self) -> str:
        return " · ".join(filter(None, self._said()))

    def _said(self) -> tuple[str, str, str, str]:
        """Images, task, accuracy so far and times; "" for what there is not."""
        now, task, right = time.monotonic(), "", ""
        if self._task:
            steps = f" · {self._step}/{self._num_steps}" if self._num_steps > 1 else ""
            task = f"{self._task}{steps} · {_clock(now - self._since)} at it"
        if self._judged:
            share = f"{100 * self._right / self._judged:.1f} %"
            # Images that are judged together are not independent: no interval before the card's.
            rate = str(wilson(self._right, self._judged)) if self._alone else share
            right = f"{self._module.so_far} so far {rate} (n = {self._judged})"
        spent, worked = now - self._start, self._worked
        left = spent / worked * (self._todo - worked) if worked else 0.0
        times = f"{_clock(spent)} spent" + (f", {_clock(left)} left" if left >= 1 else "")
        return f"{self._done}/{self._todo} images", task, right, times

    @property
    def _worked(self) -> float:
        """Images that are done, or a share of the first ones."""
        return self._done or self._share

    def _print(self, line: str) -> None:
        self._printed = time.monotonic()
        print(line, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
