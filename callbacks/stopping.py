"""A process that is told to stop says how to go on, and ends within seconds.

Lightning takes note of SIGTERM, looks at the note after the batch, which may be minutes later, and leaves with exit
code 0 and without a word: ``fit && test`` would go on, and a scheduler see success.
"""

import os
import select
import shlex
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from callbacks.attack_records import AttackRecords
from callbacks.progress import InnerProgress

STOPPED = 128 + signal.SIGTERM
"""The exit code of a process that SIGTERM ended, as a shell gives it: 143."""
INTERRUPTED = 128 + signal.SIGINT
"""The same for Ctrl-C: 130."""
_LAUNCHER = "LUSTRAL_LAUNCHER"
_LOOK_SECONDS = 0.2
_CHILD_SECONDS = 3.0  # that a child is given to end by itself
_REQUEUE_SECONDS = 20.0  # of the 30 that SLURM leaves between SIGTERM and SIGKILL by default


class Stopping:
    """While this context is open, SIGTERM ends the process (exit code 143) with a sentence, whatever it is doing.

    A thread of its own does it, which Python wakes at the signal itself: the main thread may be in a network call or
    wait for another process. Nothing has to be tidied up, for records are handed to the operating system as they are
    made, and every other file appears whole or not at all.

    Ctrl-C is Lightning's and Python's matter; when they have tidied up, the same sentence follows (exit code 130).

    Processes that Lightning launches end together: the first one tells its children, a child tells the first one, and
    each looks whether the other is still there. At the end of its own work the first one waits for them.

    Under SLURM a training is given 20 seconds: Lightning may just be writing the checkpoint of a requeue (SIGUSR1).

    Args:
        words: of the command line.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.trainer: Trainer | None = None
        self._parent = os.getppid()
        self._launched = os.environ.get(_LAUNCHER) == str(self._parent)
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is threading.main_thread():  # no other may set a handler
            self._before = os.environ.get(_LAUNCHER)
            os.environ[_LAUNCHER] = str(os.getpid())
            self._reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._handler = signal.signal(signal.SIGTERM, lambda number, frame: None)
            self._interrupt = signal.getsignal(signal.SIGINT)  # Lightning ignores the next ones for good
            self._thread = threading.Thread(target=self._watch, name="stopping", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: object, exception: BaseException | None, trace: object) -> None:
        if self._thread is not None:
            self._close(kind)
        # Lightning turns Ctrl-C into an exit with code 1.
        if isinstance(exception, KeyboardInterrupt) or (
            isinstance(exception, SystemExit) and isinstance(exception.__context__, KeyboardInterrupt)
        ):
            if rank_zero_only.rank == 0:
                self._tell(f"error: Stopped by Ctrl-C. {self.advice()}")
            raise SystemExit(INTERRUPTED) from None

    def _close(self, kind: object) -> None:
        assert self._thread is not None
        while kind is None and any(child.poll() is None for child in self._children()):
            time.sleep(_LOOK_SECONDS / 4)  # if one fails now, the thread says so
        self._ended.set()
        signal.signal(signal.SIGTERM, self._handler)
        signal.signal(signal.SIGINT, self._interrupt)
        signal.set_wakeup_fd(self._fd)
        os.write(self._writer, b"\0")  # no signal's number
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)
        if self._before is None:
            del os.environ[_LAUNCHER]
        else:
            os.environ[_LAUNCHER] = self._before

    def _watch(self) -> None:
        while True:
            ready, _, _ = select.select([self._reader], [], [], _LOOK_SECONDS)
            found = os.read(self._reader, 64) if ready else b""
            if signal.SIGTERM in found:
                self._stop()
            if 0 in found:
                return
            if self._launched and os.getppid() != self._parent:
                self._orphaned()
            for number, child in enumerate(self._children(), 1):
                if child.poll():
                    self._lost(number, child.returncode)

    def _stop(self) -> NoReturn:
        if self._launched:
            with suppress(ProcessLookupError):
                os.kill(self._parent, signal.SIGTERM)  # it speaks, and ends all others
            _leave(0)  # at another code Lightning's own watch over children could kill it before it has spoken
        if self._training and SLURMEnvironment.detect():
            time.sleep(_REQUEUE_SECONDS)
        if rank_zero_only.rank == 0:
            self._tell(f"error: Stopped by SIGTERM. {self.advice()}")
        self._end_children()
        _leave(STOPPED)

    def _orphaned(self) -> None:
        if self._ended.wait(_CHILD_SECONDS):
            return  # what ended the first process has ended this one as well
        if os.environ.get("LOCAL_RANK") == "1":
            self._tell(f"error: The first process of this run is gone, so the others end too. {self.advice()}")
        _leave(1)

    def _lost(self, number: int, code: int) -> None:
        if code > 0 and self._ended.wait(_CHILD_SECONDS if code == INTERRUPTED else 1):
            return  # this process has met the same, and tells it
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if code == -signal.SIGKILL:
            how += " (as happens where memory runs out: use fewer processes)"
        self._tell(f"error: Process {number} of this run {how}, so the others end too. {self.advice()}")
        self._end_children()
        _leave(STOPPED if code == -signal.SIGTERM else 1)

    def _end_children(self) -> None:
        children = self._children()
        for child in children:
            child.send_signal(signal.SIGTERM)  # passes over those that have ended
        until = time.monotonic() + _CHILD_SECONDS
        while time.monotonic() < until and any(child.poll() is None for child in children):
            time.sleep(0.02)
        for child in children:
            child.kill()

    def _children(self) -> list[Any]:
        """The processes that Lightning's launcher has started from this one."""
        launcher = None if self.trainer is None else self.trainer.strategy.launcher
        return list(getattr(launcher, "procs", []))

    @property
    def _training(self) -> bool:
        return self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING

    def _tell(self, sentence: str) -> None:
        """Past Python's buffers, whose locks the main thread may hold; below lines that are drawn in place."""
        for callback in self._callbacks:
            if isinstance(callback, InnerProgress):
                callback.freeze()
        start = "\n" if sys.stderr is not None and sys.stderr.isatty() else ""
        os.write(2, f"{start}{sentence}\n".encode())

    @property
    def _callbacks(self) -> list[Any]:
        return [] if self.trainer is None else self.trainer.callbacks  # type: ignore[attr-defined]

    def advice(self) -> str:
        """How the run goes on, in a sentence."""
        if self.trainer is None or not self._training:
            kept = any(isinstance(c, AttackRecords) and c.fingerprint is not None for c in self._callbacks)
            start = "Recorded images are kept; the same command goes on" if kept else "The same command starts again"
            return f"{start}: {command(self.words)}"
        newest = _newest_checkpoint(self.trainer)
        if newest is None:
            return f"There is no checkpoint yet, so the same command starts again: {command(self.words)}"
        words = [*_without_checkpoint(self.words), "--ckpt_path", str(newest)]
        return f"Training goes on from its last checkpoint: {command(words)}"


def command(words: Sequence[str]) -> str:
    """Command-line words as they are typed."""
    return shlex.join(["python", "cli.py", *words])


def _newest_checkpoint(trainer: Trainer) -> Path | None:
    folders = [c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.dirpath]
    found = [path for folder in folders for path in Path(folder).glob("*.ckpt")]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _without_checkpoint(words: Sequence[str]) -> list[str]:
    kept = [w for i, w in enumerate(words) if w != "--ckpt_path" and (i == 0 or words[i - 1] != "--ckpt_path")]
    return [word for word in kept if not word.startswith("--ckpt_path=")]


def _leave(code: int) -> NoReturn:
    os._exit(code)
