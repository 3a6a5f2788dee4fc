"""A row of a table under one seed is one `cli.py test`, in a process and a folder of its own."""

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lustral.evaluation.records import record_keys
from lustral.tables.table import Row

FINISHED = "table_row.json"
"""Written into a job's folder when its evaluation has ended: the command that made it."""
HAVE_A_CARD = (0, 3)
"""Exit codes of an evaluation that ended; 3 says that samples met NaN."""


@dataclass(frozen=True)
class Job:
    """One evaluation.

    Attributes:
        folder: where its results go.
        words: its command, after ``python cli.py``.
    """

    row: Row
    seed: int
    folder: Path
    words: tuple[str, ...]

    @property
    def command(self) -> str:
        """As it is typed."""
        return shlex.join(["python", "cli.py", *self.words])

    @property
    def done(self) -> bool:
        """Whether this very command has ended here."""
        try:
            made_by = json.loads((self.folder / FINISHED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return (self.folder / "card.json").is_file() and made_by == list(self.words)

    @property
    def state(self) -> str:
        """How far it is: "done", "n recorded" or "-"."""
        if self.done:
            return "done"
        recorded = len(record_keys(self.folder / "records")) if (self.folder / "records").is_dir() else 0
        return f"{recorded} recorded" if recorded else "-"

    def run(self, cli: Path) -> int:
        """Evaluate, or go on where it stopped; returns the exit code of the process."""
        code = call(cli, self.words)
        if code in HAVE_A_CARD:
            (self.folder / FINISHED).write_text(json.dumps(list(self.words)) + "\n", encoding="utf-8")
        return code


def make_jobs(rows: Sequence[Row], seeds: Sequence[int], folder: Path, more: Sequence[str]) -> list[Job]:
    """The jobs of ``rows``, each under all ``seeds``, below ``folder``.

    Args:
        more: words for every one of them, such as ``--data.num_test 50``.
    """
    jobs = []
    for row in rows:
        for seed in seeds:
            own = folder / (f"{row.name}-seed{seed}" if seed else row.name)
            seeded = ("--model.seed", str(seed)) if seed else ()
            place = ("--trainer.default_root_dir", str(own))
            jobs.append(Job(row, seed, own, ("test", *row.choice.words(), *more, *seeded, *place)))
    return jobs


def missing(needs: Mapping[str, str]) -> dict[str, str]:
    """Those of a table's needs whose file is not there."""
    return {file: command for file, command in needs.items() if not Path(file).is_file()}


def call(cli: Path, words: Sequence[str]) -> int:
    """Run ``cli.py`` with ``words`` in a process of its own; returns its exit code, or 143 (130 after Ctrl-C) if this
    process was told to stop meanwhile. SIGTERM is handed on, Ctrl-C reaches both without help; then the process tidies
    up, which is waited for."""
    told: list[int] = []
    with subprocess.Popen([sys.executable, str(cli), *words]) as process:

        def stop(number: int, frame: Any) -> None:
            told.append(number)  # only that: whoever waits for the process holds a lock, and would never get it here
            process.send_signal(number)

        before = signal.signal(signal.SIGTERM, stop)
        try:
            code: int | None = None
            while code is None:
                try:
                    code = process.wait()
                except KeyboardInterrupt:
                    told.append(signal.SIGINT)
        finally:
            signal.signal(signal.SIGTERM, before)
    return 128 + told[0] if told else code
