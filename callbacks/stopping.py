"""A process that is told to stop prints how to resume, and ends within seconds.

Lightning handles SIGTERM only after the current batch, which may take minutes, and then exits silently with code 0: in
``fit && test`` the test would still run, and a scheduler would see success.
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
"""The exit code of a process that was ended by SIGTERM, as shells report it: 143."""
INTERRUPTED = 128 + signal.SIGINT
"""The same for Ctrl-C: 130."""
_LAUNCHER = "LUSTRAL_LAUNCHER"
_LOOK_SECONDS = 0.2
_CHILD_SECONDS = 3.0  # time for a child process to end by itself
_REQUEUE_SECONDS = 20.0  # of the 30 that SLURM leaves between SIGTERM and SIGKILL by default


class Stopping:
    """In this context, SIGTERM ends the process at once (exit code 143), after a sentence on how to resume the run.

    A separate thread does this, which Python wakes when the signal arrives: the main thread may be in a network call or
    wait for another process. No cleanup is needed, since records are flushed to the operating system as they are made,
    and every other file is written atomically.

    Ctrl-C is handled by Lightning and Python; the same sentence is printed after their cleanup (exit code 130).

    Processes that Lightning launches end together: the first process signals its children, a child signals the first
    process, and each checks that the other is still running. After its own work, the first process waits for the
    others.

    Under SLURM, a training is given 20 seconds, since Lightning may be writing a checkpoint before a requeue (SIGUSR1).

    Args:
        words: the words of the command line.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.trainer: Trainer | None = None
        self._parent = os.getppid()
        self._launched = os.environ.get(_LAUNCHER) == str(self._parent)
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is threading.main_thread():  # only the main thread may set a handler
            self._before = os.environ.get(_LAUNCHER)
            os.environ[_LAUNCHER] = str(os.getpid())
            self._reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._handler = signal.signal(signal.SIGTERM, lambda number, frame: None)
            self._interrupt = signal.getsignal(signal.SIGINT)  # restored at the end: Lightning would go on ignoring it
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
            time.sleep(_LOOK_SECONDS / 4)  # if a child fails now, the thread reports it
        self._ended.set()
        signal.signal(signal.SIGTERM, self._handler)
        signal.signal(signal.SIGINT, self._interrupt)
        signal.set_wakeup_fd(self._fd)
        os.write(self._writer, b"\0")  # 0 is no signal's number: it ends the thread
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
                os.kill(self._parent, signal.SIGTERM)  # the parent prints the sentence, and ends all others
            _leave(0)  # with another code, Lightning's monitor of children could kill the parent before it has printed
        if self._training and SLURMEnvironment.detect():
            time.sleep(_REQUEUE_SECONDS)
        if rank_zero_only.rank == 0:
            self._tell(f"error: Stopped by SIGTERM. {self.advice()}")
        self._end_children()
        _leave(STOPPED)

    def _orphaned(self) -> None:
        if self._ended.wait(_CHILD_SECONDS):
            return  # this process has ended by itself, for the same reason as the first one
        if os.environ.get("LOCAL_RANK") == "1":
            self._tell(f"error: The first process of this run is gone, so the others end too. {self.advice()}")
        _leave(1)

    def _lost(self, number: int, code: int) -> None:
        if code > 0 and self._ended.wait(_CHILD_SECONDS if code == INTERRUPTED else 1):
            return  # this process has failed in the same way, and reports it
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if code == -signal.SIGKILL:
            how += " (as happens where memory runs out: use fewer processes)"
        self._tell(f"error: Process {number} of this run {how}, so the others end too. {self.advice()}")
        self._end_children()
        _leave(STOPPED if code == -signal.SIGTERM else 1)

    def _end_children(self) -> None:
        children = self._children()
        for child in children:
            child.send_signal(signal.SIGTERM)  # has no effect on processes that have ended
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
        """A sentence on how to resume the run."""
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
    """The command line of ``cli.py`` with these ``words``, quoted for a shell."""
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
