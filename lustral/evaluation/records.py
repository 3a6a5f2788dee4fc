"""Records: one per sample, appended and flushed when it is finished, so that a killed run can be resumed.

A folder holds ``fingerprint.json`` and shards of JSON lines, one shard for each process and start. A process never
writes to another's shard, so written records are safe if a process dies or the run is started again. A line that a
killed process left half-written is the last of its shard, and is skipped. Every line ends with its checksum, so that
damage is reported instead of counted. In folders begun by an older version, lines may lack a checksum and are not
checked.

A record's key is (replicate, index). Images that are judged in groups are recorded group by group. If a process was
killed while writing a group, the whole group is judged again, and the records written last count.
"""

import base64
import contextlib
import json
import os
import re
import time
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from lustral.evaluation.fingerprint import SCHEMA, Fingerprint

Key = tuple[int, int]
"""(replicate, index): the key of a record."""

_KEY = re.compile(rb'\{"index": (\d+),(?: "replicate": (\d+),)?')  # a record's first fields
_CHECKSUM = re.compile(rb', "crc32": "([0-9a-f]{8})"\}$')  # a record's last field, the checksum of the text before it
_SHARD = re.compile(r"rank\d+-([0-9a-f]+)-[0-9a-f]+\.jsonl$")
_CHECKSUM_BYTES = len(', "crc32": "00000000"}')


Kind = TypeVar("Kind", bound="KeyedRecord")


class KeyedRecord:
    """What is stored of one sample by an evaluation of any kind; subclasses are dataclasses of plain data and tensors.

    Attributes:
        index: position in the full data set split.
        replicate: the number of the partition into groups; 0 where images are judged alone.
        group: the index of the first image of its group, which together with ``replicate`` identifies the group; None
            where images are judged alone.
    """

    index: int
    replicate: int
    group: int | None

    @property
    def key(self) -> Key:
        return self.replicate, self.index

    @property
    def unit(self) -> Key:
        """(replicate, index of the group's first image): equal for exactly those images that were judged together."""
        return self.replicate, self.index if self.group is None else self.group

    def to_json(self) -> str:
        """The record as one line with its checksum. The key comes first, so that it can be read without decoding the
        rest. "replicate" is written unless it is 0, "group" unless it is None."""
        values = {k: _pack(v) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        replicate, group = values.pop("replicate"), values.pop("group")
        values = {
            "index": values.pop("index"),
            **({"replicate": replicate} if replicate else {}),
            **({} if group is None else {"group": group}),
            **values,
        }
        text = json.dumps(values)[:-1]
        return f'{text}, "crc32": "{zlib.crc32(text.encode()):08x}"}}'

    @classmethod
    def from_json(cls: type[Kind], line: str | bytes) -> Kind:
        values: dict[str, Any] = {
            name: _unpack(value) if isinstance(value, dict) and "float32" in value else value
            for name, value in json.loads(line).items()
            if name != "crc32"
        }
        return cls(**values)


@dataclass(frozen=True)
class Record(KeyedRecord):
    """All that is stored of one sample that was attacked.

    Attributes:
        index: position in the full data set split.
        label: the true class.
        image: (C, H, W) float32, the adversarial image.
        distance: norm of the perturbation.
        failed: whether the attack or a verdict met NaN or Inf; such a sample counts as broken.
        clean_logits: (k, K) float32, k verdict draws of the clean image.
        adversarial_logits: (k, K) float32, k verdict draws of the adversarial image.
        statistics: the attack's statistics for the audit, and the noise levels and scores of the verdict draws, if the
            purifier has them (see `level_statistics`); empty if ``failed``.
        audit: the accuracy on this sample under each of the audit's probes; empty for samples that are not audited.
        audit_margins: for each probe, the margin of every draw (see `lustral.evaluation.audit`).
        audit_steps: the predicted and the actual change of the margin over steps along the attack's gradient.
        replicate: the number of the partition into groups; 0 where images are judged alone.
        group: the index of the first image of its group, which together with ``replicate`` identifies the group; None
            where images are judged alone.
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
    audit_margins: dict[str, list[float]] = field(default_factory=dict)
    audit_steps: dict[str, list[float]] = field(default_factory=dict)
    replicate: int = 0
    group: int | None = None


def _pack(tensor: Tensor) -> dict[str, Any]:
    array = tensor.detach().cpu().contiguous().numpy().astype("<f4", copy=False)
    return {"shape": list(array.shape), "float32": base64.b64encode(array.tobytes()).decode("ascii")}


def _unpack(packed: dict[str, Any]) -> Tensor:
    flat = np.frombuffer(base64.b64decode(packed["float32"]), dtype="<f4")
    return torch.from_numpy(flat.astype(np.float32).reshape(packed["shape"]))


class RecordFolder:
    """A folder with the records of one fingerprint.

    Args:
        folder: its path; it is created if it does not exist.
        fingerprint: what decides the run's results.
        rank: this process's number, for the name of its shard.

    Raises:
        ValueError: if the folder holds records of another fingerprint, or records without a fingerprint; nothing in it
            is changed.
        OSError: if the folder cannot be written to.
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
        """Write this run's fingerprint into a folder that has none, atomically and only if no other run has written one
        meanwhile: of two runs that start at the same time, only one gets the folder."""
        if any(self.folder.glob("*.jsonl")):
            raise ValueError(
                f"{self.folder} holds records without a fingerprint.json, so nobody can tell whose they are: move "
                "them away, or give this run its own folder with --trainer.default_root_dir."
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self.folder / f".fingerprint.{self.rank}.{os.getpid()}"
            content = {
                "schema": SCHEMA,
                "checksums": True,
                "sha256": fingerprint.sha256,
                "decides": fingerprint.decides,
            }
            partial.write_text(json.dumps(content, indent=1))
            with contextlib.suppress(FileExistsError):
                os.link(partial, path)
            partial.unlink()
        except OSError as error:
            raise OSError(
                f"Records cannot be written to {self.folder} ({error.strerror}): free or unlock it, or choose another "
                "folder with --trainer.default_root_dir."
            ) from error

    def append(self, records: Sequence[KeyedRecord]) -> None:
        """Append records to this process's shard and flush it to the operating system, so that they survive if the
        process is killed.

        Raises:
            OSError: if they cannot be written.
        """
        try:
            if self._shard is None:
                name = f"rank{self.rank}-{time.time_ns():x}-{os.getpid():x}.jsonl"
                self._shard = (self.folder / name).open("x")
            self._shard.writelines(record.to_json() + "\n" for record in records)
            self._shard.flush()
        except OSError as error:
            raise OSError(
                f"Records cannot be written to {self.folder} any more ({error.strerror}): make room or unlock it, and "
                "start the same command again; what is recorded is kept."
            ) from error

    def read(self) -> dict[Key, Record]:
        """All records by key, of every process and start (see `read_records`), in a folder of attacked samples."""
        return read_records(self.folder)

    def keys(self) -> set[Key]:
        """The keys that have a record."""
        return record_keys(self.folder)

    def close(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None


def read_records(
    folder: str | Path,
    keys: Collection[Key] | None = None,
    kind: type[Kind] = Record,  # type: ignore[assignment]
) -> dict[Key, Kind]:
    """The records of a folder by key, in ascending order.

    If a key has several records, the first is taken for an image that is judged alone (they are equal), and the last
    for an image that is judged in a group (the group was judged again as a whole).

    Args:
        folder: the folder.
        keys: the keys to read, as far as they have a record; other lines are not decoded. None: all.
        kind: the class of the records, by the kind of evaluation that wrote them.

    Raises:
        ValueError: if a line is damaged; the message names file and line.
    """
    wanted = None if keys is None else set(keys)
    records: dict[Key, Kind] = {}
    for key, line, where in _lines(Path(folder)):
        known = records.get(key)
        if (wanted is None or key in wanted) and (known is None or known.group is not None):
            try:
                records[key] = kind.from_json(line)
            except (ValueError, KeyError, TypeError) as error:  # a damaged line of an older version, without a checksum
                raise _damaged(where) from error
    return dict(sorted(records.items()))


def record_keys(folder: str | Path) -> set[Key]:
    """The keys (replicate, index) that have a record in a folder.

    Records are not decoded, but every checksum is verified, so that damage is reported before the remaining images are
    attacked.

    Raises:
        ValueError: if a line is damaged; the message names file and line.
    """
    return {key for key, _, _ in _lines(Path(folder))}


def read_fingerprint(folder: str | Path) -> dict[str, Any]:
    """The content of a folder's ``fingerprint.json``: "sha256", "decides" (see `Fingerprint`), and "checksums", whether
    every line of the folder must have a checksum.

    Raises:
        ValueError: if it is damaged, or its content does not match its own hash.
    """
    path = Path(folder) / "fingerprint.json"
    try:
        kept = json.loads(path.read_text())
        decides, sha256, schema = kept["decides"], kept["sha256"], kept.get("schema", 1)
        actual = Fingerprint(decides).hashed(schema)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged, so nobody can tell whose records lie beside it: restore it, or move the folder away."
        ) from error
    if sha256 != actual:
        raise ValueError(
            f"{path} was changed since it was written (its hash is of other content), so nobody can tell whose records "
            "lie beside it: restore it, or move the folder away."
        )
    return {"sha256": sha256, "decides": decides, "checksums": bool(kept.get("checksums"))}


def _lines(folder: Path) -> Iterator[tuple[Key, bytes, str]]:
    """(key, line, file and line number) of every complete line of every shard, in the order in which the shards were
    begun; checksums are verified."""
    shards = sorted(folder.glob("*.jsonl"), key=_begun)
    checked = bool(shards) and (folder / "fingerprint.json").exists() and read_fingerprint(folder)["checksums"]
    for shard in shards:
        with shard.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # a killed write, the last of its shard
                where = f"{shard}, line {number}"
                line = line[:-1]
                key, checksum = _KEY.match(line), _CHECKSUM.search(line, max(0, len(line) - _CHECKSUM_BYTES))
                if key is None or not line.endswith(b"}") or (checked and checksum is None):
                    raise _damaged(where)
                if checksum is not None and int(checksum[1], 16) != zlib.crc32(memoryview(line)[: checksum.start()]):
                    raise _damaged(where)
                yield (int(key[2] or 0), int(key[1])), line, where


def _begun(shard: Path) -> tuple[int, str]:
    """A sort key: the time at which a shard was begun, from its name; shards with another kind of name come first."""
    time_ns = _SHARD.match(shard.name)
    return int(time_ns[1], 16) if time_ns else 0, shard.name


def _damaged(where: str) -> ValueError:
    return ValueError(
        f"{where} is no record as it was written (its checksum or its form is wrong): restore the file from a copy, or "
        "move it away to have its images judged again."
    )
