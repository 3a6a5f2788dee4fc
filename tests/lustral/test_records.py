"""Records: nothing written is lost, nothing half-written is believed, nothing foreign is mixed in."""

import json
import multiprocessing
import re
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lustral.evaluation import Fingerprint, Key, Record, RecordFolder, read_records
from lustral.evaluation.records import record_keys
from tests.contracts import generator

FINGERPRINT = Fingerprint({"seed": 0, "attack": {"class": "PGD", "num_steps": 20}, "rows": 64})


def _record(index: int) -> Record:
    source = generator(index)
    return Record(
        index=index,
        label=index % 10,
        image=torch.rand(1, 8, 8, generator=source),
        distance=float(torch.rand((), generator=source, dtype=torch.float64)),
        failed=index % 7 == 3,
        clean_logits=torch.randn(4, 10, generator=source),
        adversarial_logits=torch.randn(4, 10, generator=source) * 1e-20,  # subnormals survive as well
        statistics={"loss_first": 0.1 + index, "loss_last": 1 / 3},
        audit={"bpda": 0.25} if index == 0 else {},
    )


def _keys(*indices: int) -> list[Key]:
    return [(0, index) for index in indices]


def _same(one: Record, other: Record) -> bool:
    tensors = ("image", "clean_logits", "adversarial_logits")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors) and all(
        vars(one)[name] == vars(other)[name] for name in vars(one) if name not in tensors
    )


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_record_survives_the_file_bit_for_bit(tmp_path: Path) -> None:
    folder = RecordFolder(tmp_path / "records", FINGERPRINT)
    written = [_record(i) for i in (5, 0, 3, 11)]
    folder.append(written[:1])
    folder.append(written[1:])
    found = folder.read()
    assert list(found) == _keys(0, 3, 5, 11)
    assert all(_same(found[record.key], record) for record in written)
    assert found[0, 0].image.dtype == found[0, 0].clean_logits.dtype == torch.float32
    assert folder.keys() == set(_keys(0, 3, 5, 11))
    folder.close()
    assert list(read_records(tmp_path / "records")) == _keys(0, 3, 5, 11)


def test_logits_that_are_no_numbers_survive_too() -> None:
    record = _record(1)
    record.clean_logits[0, 0], record.clean_logits[1, 1] = float("nan"), float("-inf")
    back = Record.from_json(record.to_json())
    assert torch.equal(back.clean_logits.view(torch.int32), record.clean_logits.view(torch.int32))


def test_every_append_is_readable_at_once(tmp_path: Path) -> None:
    """Flushed, not kept in the process: what is appended has been handed to the operating system."""
    folder = RecordFolder(tmp_path, FINGERPRINT)
    for i in range(3):
        folder.append([_record(i)])
        assert list(read_records(tmp_path)) == _keys(*range(i + 1))
    folder.close()


def test_a_full_disk_is_told_and_what_was_recorded_is_kept(tmp_path: Path) -> None:
    folder = RecordFolder(tmp_path, FINGERPRINT)
    folder.append([_record(0)])
    (shard,) = _shards(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (shard.stat().st_size + 100, hard))
    try:
        with pytest.raises(OSError, match=r"cannot be written to .* any more \(File too large\): .* recorded is kept"):
            folder.append([_record(1), _record(2)])
        with suppress(OSError):
            folder.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    again = RecordFolder(tmp_path, FINGERPRINT)
    assert again.keys() == set(_keys(0))
    again.append([_record(1)])
    again.close()
    assert all(_same(record, _record(index)) for (_, index), record in again.read().items())


def _append_five_and_hang(folder: Path) -> None:
    records = RecordFolder(folder, FINGERPRINT)
    for i in range(5):
        records.append([_record(i)])
    (folder / "written").touch()
    time.sleep(60)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12, of a process with threads
def test_a_killed_process_loses_nothing_that_it_appended(tmp_path: Path) -> None:
    """A real process, stopped by SIGKILL in the middle of its work."""
    process = multiprocessing.get_context("fork").Process(target=_append_five_and_hang, args=(tmp_path,))
    process.start()
    while process.is_alive() and not (tmp_path / "written").exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list(read_records(tmp_path)) == _keys(0, 1, 2, 3, 4)


@pytest.mark.parametrize("kept", [1, 20, -2, -1])
def test_a_torn_last_line_is_passed_over(tmp_path: Path, kept: int) -> None:
    """Wherever the write was cut: at its first byte, in the middle, before the brace, before the newline."""
    folder = RecordFolder(tmp_path, FINGERPRINT)
    folder.append([_record(i) for i in range(3)])
    folder.close()
    (shard,) = _shards(tmp_path)
    *lines, last = shard.read_text().splitlines(keepends=True)
    shard.write_text("".join(lines) + last[:kept])
    assert list(read_records(tmp_path)) == _keys(0, 1)
    again = RecordFolder(tmp_path, FINGERPRINT)
    assert again.keys() == set(_keys(0, 1))
    again.append([_record(2)])
    again.close()
    assert list(read_records(tmp_path)) == _keys(0, 1, 2)
    assert shard.read_text().endswith(last[:kept]), "the dead process's shard was written to"


def test_a_broken_line_in_the_middle_is_not_passed_over(tmp_path: Path) -> None:
    folder = RecordFolder(tmp_path, FINGERPRINT)
    folder.append([_record(i) for i in range(3)])
    folder.close()
    (shard,) = _shards(tmp_path)
    lines = shard.read_text().splitlines(keepends=True)
    shard.write_text(lines[0] + lines[1][:30] + "\n" + lines[2])
    with pytest.raises(ValueError, match=r"line 2 is no record as it was written .*: restore the file"):
        read_records(tmp_path)


@pytest.mark.parametrize("read", [read_records, record_keys])
@pytest.mark.parametrize(
    ("before", "after"),
    [(r'"label": 1', '"label": 2'), (r'"float32": "..', '"float32": "AA'), (r', "crc32": "\w+"', ""), (r"^", "\0\0")],
    ids=["label", "image", "checksum", "zeros"],
)
def test_a_line_that_is_not_as_it_was_written_is_told_by_file_and_number(
    tmp_path: Path, before: str, after: str, read: Callable[[Path], object]
) -> None:
    """Every line ends in a checksum: a changed label or pixel is no record, however well-formed."""
    folder = RecordFolder(tmp_path, FINGERPRINT)
    folder.append([_record(i) for i in range(3)])
    folder.close()
    (shard,) = _shards(tmp_path)
    lines = shard.read_text().splitlines(keepends=True)
    changed = re.sub(before, after, lines[1], count=1)
    assert changed != lines[1]
    shard.write_text(lines[0] + changed + lines[2])
    with pytest.raises(ValueError, match=rf"{shard}, line 2 is no record as it was written"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"line 2 is no record"):
        RecordFolder(tmp_path, FINGERPRINT).keys()


def test_a_folder_of_an_older_version_is_read_as_it_is_and_not_gone_on_with(tmp_path: Path) -> None:
    """Its lines have no checksums, and its fingerprint promises none."""
    folder = RecordFolder(tmp_path, FINGERPRINT)
    folder.append([_record(i) for i in range(2)])
    folder.close()
    (shard,) = _shards(tmp_path)
    shard.write_text(re.sub(r', "crc32": "\w+"', "", shard.read_text()))
    (tmp_path / "fingerprint.json").write_text(
        json.dumps({"sha256": FINGERPRINT.hashed(1), "decides": FINGERPRINT.decides})
    )
    assert all(_same(record, _record(index)) for (_, index), record in read_records(tmp_path).items())
    assert record_keys(tmp_path) == set(_keys(0, 1))
    with pytest.raises(ValueError, match="it differs in the version of Lustral"):
        RecordFolder(tmp_path, FINGERPRINT)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [('"seed": 0', '"seed": 7', "was changed since it was written"), ("{", "[", "is damaged")],
)
def test_a_fingerprint_is_compared_with_its_own_hash(tmp_path: Path, before: str, after: str, told: str) -> None:
    RecordFolder(tmp_path, FINGERPRINT).close()
    path = tmp_path / "fingerprint.json"
    path.write_text(path.read_text().replace(before, after, 1))
    with pytest.raises(ValueError, match=rf"{path} {told}"):
        RecordFolder(tmp_path, Fingerprint({**FINGERPRINT.decides, "seed": 7}))


@pytest.mark.parametrize(
    ("decides", "named"),
    [
        ({"seed": 1, "attack": {"class": "PGD", "num_steps": 20}, "rows": 64}, "seed"),
        ({"seed": 0, "attack": {"class": "PGD", "num_steps": 40}, "rows": 64}, r"attack\.num_steps"),
        ({"seed": 0, "attack": {"class": "PGD", "num_steps": 20}, "rows": 64, "data": "digits"}, "data"),
    ],
)
def test_records_of_another_evaluation_are_refused_and_kept(tmp_path: Path, decides: dict, named: str) -> None:
    folder = RecordFolder(tmp_path, FINGERPRINT)
    folder.append([_record(0)])
    folder.close()
    before = _content(tmp_path)
    with pytest.raises(ValueError, match=rf"holds records of another evaluation \(it differs in {named}\): give"):
        RecordFolder(tmp_path, Fingerprint(decides))
    assert _content(tmp_path) == before


def test_records_without_a_fingerprint_are_refused_and_kept(tmp_path: Path) -> None:
    folder = RecordFolder(tmp_path, FINGERPRINT)
    folder.append([_record(0)])
    folder.close()
    (tmp_path / "fingerprint.json").unlink()
    before = _content(tmp_path)
    with pytest.raises(ValueError, match=r"without a fingerprint\.json"):
        RecordFolder(tmp_path, FINGERPRINT)
    assert _content(tmp_path) == before


def test_the_same_evaluation_goes_on_in_its_folder(tmp_path: Path) -> None:
    """The order of keys and a round through JSON do not make another evaluation of it."""
    folder = RecordFolder(tmp_path, FINGERPRINT)
    folder.append([_record(0)])
    folder.close()
    again = Fingerprint(json.loads(json.dumps(dict(reversed(FINGERPRINT.decides.items())))))
    assert again.sha256 == FINGERPRINT.sha256
    assert RecordFolder(tmp_path, again).keys() == set(_keys(0))


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """A file where the folder should be: as root, no permission would stop the test."""
    (tmp_path / "run").write_text("a file")
    with pytest.raises(
        OSError, match=r"^Records cannot be written to .*run/records \(.*\): free or unlock it"
    ) as caught:
        RecordFolder(tmp_path / "run" / "records", FINGERPRINT)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run").read_text() == "a file"


def test_two_processes_write_two_shards_and_the_first_of_equal_records_counts(tmp_path: Path) -> None:
    folders = [RecordFolder(tmp_path, FINGERPRINT, rank) for rank in range(2)]
    folders[0].append([_record(0), _record(2)])
    folders[1].append([_record(1), _record(2)])
    folders[0].append([_record(4)])
    for folder in folders:
        assert folder.keys() == set(_keys(0, 1, 2, 4))
        folder.close()
    assert len(_shards(tmp_path)) == 2
    found = read_records(tmp_path)
    assert list(found) == _keys(0, 1, 2, 4)
    assert all(_same(record, _record(index)) for (_, index), record in found.items())


def test_a_process_with_nothing_to_write_leaves_no_shard(tmp_path: Path) -> None:
    RecordFolder(tmp_path, FINGERPRINT).close()
    assert _content(tmp_path).keys() == {"fingerprint.json"}
    assert read_records(tmp_path) == {}


def test_a_group_that_was_judged_again_takes_the_place_of_its_old_records(tmp_path: Path) -> None:
    """A killed write left a part of a group of three; the start after it judges the whole group, on another machine."""
    old, new = ([replace(_record(i), replicate=1, group=4, distance=far) for i in (4, 9, 2)] for far in (0.5, 0.25))
    for rank, some in ((3, old[:2]), (0, new)):  # the later shard has the smaller rank
        folder = RecordFolder(tmp_path, FINGERPRINT, rank)
        folder.append(some)
        folder.close()
    found = read_records(tmp_path)
    assert list(found) == [(1, 2), (1, 4), (1, 9)]
    assert record_keys(tmp_path) == set(found)
    assert {record.distance for record in found.values()} == {0.25}
    assert {record.unit for record in found.values()} == {(1, 4)}


def test_the_line_of_an_image_that_is_judged_alone_names_no_group() -> None:
    line = _record(5).to_json()
    assert line.startswith('{"index": 5, "label": 5, "image": ')
    assert '"replicate"' not in line
    assert '"group"' not in line
    assert replace(_record(5), replicate=2, group=1).to_json().startswith('{"index": 5, "replicate": 2, "group": 1, ')
