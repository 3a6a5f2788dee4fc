"""One record a sample, appended and flushed as it finishes: a killed run goes on where it stopped.

A folder holds ``fingerprint.json`` and shards of JSON lines, one shard a process and start. A process never opens
another's shard for writing, so records that are written stay as they are, whoever dies and whoever starts again;
a line that a killed process left half-written is the last one of its shard, and is passed over.
"""

import base64
import contextlib
import json
import os
import re
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lustral.evaluation.fingerprint import Fingerprint

_INDEX = re.compile(r'\{"index": (\d+),')  # a record's first field


@dataclass(frozen=True)
class Record:
    """All that is kept of one sample.

    Attributes:
        index: position in the full data set split.
        label: the true class.
        image: (C, H, W) float32, the adversarial image.
        distance: norm of the perturbation.
        failed: whether the attack met NaN or Inf; such a sample counts as broken.
        clean_logits: (k, K) float32, k verdict draws of the clean image.
        adversarial_logits: (k, K) float32, k verdict draws of the adversarial image.
        statistics: what the attack tells the audit, and the noise levels and scores of the verdict draws of a purifier
            that has them (see `level_statistics`).
        audit: what the audit's own attacks found; empty for samples outside the audited part.
    """

    index: int
    label: int
    image: Tensor
    distance: float
    failed: bool
    clean_logits: Tensor
    adversarial_logits: Tensor
    statistics: dict[str, float]
    audit: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps({k: _pack(v) if isinstance(v, Tensor) else v for k, v in vars(self).items()})

    @classmethod
    def from_json(cls, line: str) -> "Record":
        values: dict[str, Any] = {
            name: _unpack(value) if isinstance(value, dict) and "float32" in value else value
            for name, value in json.loads(line).items()
        }
        return cls(**values)


def _pack(tensor: Tensor) -> dict[str, Any]:
    array = tensor.detach().cpu().contiguous().numpy().astype("<f4", copy=False)
    return {"shape": list(array.shape), "float32": base64.b64encode(array.tobytes()).decode("ascii")}


def _unpack(packed: dict[str, Any]) -> Tensor:
    flat = np.frombuffer(base64.b64decode(packed["float32"]), dtype="<f4")
    return torch.from_numpy(flat.astype(np.float32).reshape(packed["shape"]))


class RecordFolder:
    """The records of one fingerprint.

    Args:
        folder: where they are kept; made if it is not there.
        fingerprint: what decides the run's results.
        rank: this process's number, for the shard's name.

    Raises:
        ValueError: if the folder holds records of another fingerprint. Nothing in it is touched.
        OSError: if the folder cannot be written.
    """

    def __init__(self, folder: str | Path, fingerprint: Fingerprint, rank: int = 0) -> None:
        self.folder, self.rank = Path(folder), rank
        self._shard = None
        path = self.folder / "fingerprint.json"
        if not path.exists():
            self._claim(path, fingerprint)
        kept = read_fingerprint(self.folder)
        if kept["sha256"] != fingerprint.sha256:
            keys = fingerprint.differences(kept["decides"])
            named = ", ".join(keys[:4]) or "the version of Lustral"
            raise ValueError(
                f"{self.folder} holds records of another evaluation (it differs in {named}"
                f"{' ...' if len(keys) > 4 else ''}): give this one its own folder with "
                "--trainer.default_root_dir, or move the old records away."
            )

    def _claim(self, path: Path, fingerprint: Fingerprint) -> None:
        """Put this run's fingerprint into a folder that has none. It appears whole, and only if no other run's was
        there first: two runs that start together cannot both believe that the folder is theirs."""
        if any(self.folder.glob("*.jsonl")):
            raise ValueError(
                f"{self.folder} holds records without a fingerprint.json, so nobody can tell whose they are: move "
                "them away, or give this run its own folder with --trainer.default_root_dir."
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self.folder / f".fingerprint.{self.rank}.{os.getpid()}"
            partial.write_text(json.dumps({"sha256": fingerprint.sha256, "decides": fingerprint.decides}, indent=1))
            with contextlib.suppress(FileExistsError):
                os.link(partial, path)
            partial.unlink()
        except OSError as error:
            raise OSError(
                f"Records cannot be written to {self.folder} ({error.strerror}): free or unlock it, or choose another "
                "folder with --trainer.default_root_dir."
            ) from error

    def append(self, records: Sequence[Record]) -> None:
        """Write records and hand them to the operating system: a killed process loses none of them."""
        if self._shard is None:
            name = f"rank{self.rank}-{time.time_ns():x}-{os.getpid():x}.jsonl"
            self._shard = (self.folder / name).open("x")
        self._shard.writelines(record.to_json() + "\n" for record in records)
        self._shard.flush()

    def read(self) -> dict[int, Record]:
        """All records by index, whoever wrote them; of several of one index the first shard's (they are equal)."""
        return read_records(self.folder)

    def indices(self) -> set[int]:
        """The samples that have a record."""
        return record_indices(self.folder)

    def close(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None


def read_records(folder: str | Path, indices: Collection[int] | None = None) -> dict[int, Record]:
    """The records of a folder by index, ascending: those of ``indices`` that there are, or all. Of several records
    of one index the first is taken; lines that are not asked for are not decoded."""
    wanted = None if indices is None else set(indices)
    records: dict[int, Record] = {}
    for line in _lines(Path(folder)):
        match = _INDEX.match(line)
        if match is None or ((wanted is None or int(match[1]) in wanted) and int(match[1]) not in records):
            record = Record.from_json(line)
            records[record.index] = record
    return dict(sorted(records.items()))


def record_indices(folder: str | Path) -> set[int]:
    """The samples that have a record in a folder. Reads the beginning of each line only: images are long."""
    return {int(match[1]) for line in _lines(Path(folder)) if (match := _INDEX.match(line))}


def read_fingerprint(folder: str | Path) -> dict[str, Any]:
    """The content of a folder's ``fingerprint.json``: "sha256", and what it "decides"."""
    path = Path(folder) / "fingerprint.json"
    try:
        kept = json.loads(path.read_text())
        return {"sha256": kept["sha256"], "decides": kept["decides"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged, so nobody can tell whose records lie beside it: restore it, or move the folder away."
        ) from error


def _lines(folder: Path) -> list[str]:
    """Every whole line of every shard."""
    whole: list[str] = []
    for shard in sorted(folder.glob("*.jsonl")):
        *lines, _torn = shard.read_text().split("\n")  # after the last newline: nothing, or a killed write
        for number, line in enumerate(lines, 1):
            if not (line.startswith("{") and line.endswith("}")):
                raise ValueError(f"{shard}, line {number} is no record: the file was changed by hand; restore it.")
        whole.extend(lines)
    return whole
