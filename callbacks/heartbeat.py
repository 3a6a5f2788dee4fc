"""Heartbeat files, which show which processes of a run are still running: they need a shared folder, no collective."""

import time
from contextlib import suppress
from pathlib import Path

from callbacks.ticker import Ticker

BEAT_SECONDS = 5.0
PATIENCE_SECONDS = 180.0
"""A process without a heartbeat for this time counts as dead; a shared folder may show files a minute late."""
FORGOTTEN_SECONDS = 600.0
"""Files that have not been written for this time are left over from a run that was killed."""
_WORKS, _ENDED = "works\n", "ended\n"


class Heartbeat:
    """This process's heartbeat file, rewritten every 5 seconds from `start` until `stop`, which marks it as ended.

    Args:
        folder: the run folder.
        start: a name that all processes of one start share, and no other start has.
        rank: the rank of this process.
    """

    def __init__(self, folder: Path, start: str, rank: int) -> None:
        self.file = _file(folder, start, rank)
        self._ticker = Ticker(BEAT_SECONDS, lambda: self._write(_WORKS))

    def start(self) -> None:
        self._write(_WORKS)
        self._ticker.start()

    def stop(self) -> None:
        self._ticker.stop()
        self._write(_ENDED)

    def _write(self, word: str) -> None:
        with suppress(OSError):  # a missed heartbeat is no reason to end the work
            self.file.parent.mkdir(exist_ok=True)
            self.file.write_text(word)


class Watch:
    """Tells one process whether the others of its start are still running.

    Clocks of machines differ, so a process is alive if its file has changed recently by the clock of the watching
    process.
    """

    def __init__(self, folder: Path, start: str) -> None:
        self.folder, self.start = folder, start
        self._seen: dict[int, tuple[int, float]] = {}

    def works(self, rank: int) -> bool:
        """Whether process ``rank`` has not ended, and its file has changed within `PATIENCE_SECONDS`."""
        file, now = _file(self.folder, self.start, rank), time.monotonic()
        beat = 0
        with suppress(OSError):
            if file.read_text() == _ENDED:
                return False
            beat = file.stat().st_mtime_ns
        if rank not in self._seen or self._seen[rank][0] != beat:
            self._seen[rank] = beat, now
        return now - self._seen[rank][1] < PATIENCE_SECONDS

    def clear(self) -> None:
        """Remove the files of this start, and those left over from killed runs."""
        folder = _file(self.folder, self.start, 0).parent
        for file in folder.glob("*"):
            with suppress(OSError):
                if file.name.startswith(self.start) or time.time() - file.stat().st_mtime > FORGOTTEN_SECONDS:
                    file.unlink()
        with suppress(OSError):
            folder.rmdir()


def _file(folder: Path, start: str, rank: int) -> Path:
    return folder / ".processes" / f"{start}-rank{rank}"
