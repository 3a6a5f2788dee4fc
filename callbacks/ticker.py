"""Something small that is done again and again beside the main thread, however long that is busy."""

import threading
from collections.abc import Callable


class Ticker:
    """Calls ``action`` every ``seconds`` in a thread of its own, from `start` to `stop`; both may be called again."""

    def __init__(self, seconds: float, action: Callable[[], None]) -> None:
        self.seconds, self.action = seconds, action
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None:
            self._ended.clear()
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def stop(self, seconds: float | None = None) -> None:
        """Returns once no call is under way, or after ``seconds``; no other call begins."""
        thread = self._thread
        if thread is not None:
            self._ended.set()
            thread.join(seconds)
            self._thread = None

    def _run(self) -> None:
        while not self._ended.wait(self.seconds):
            self.action()
