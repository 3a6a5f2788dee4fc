"""A defence that judges images in groups, from the data to the card: no number depends on how the work was done."""

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from callbacks import AttackRecords, InnerProgress, Panels
from callbacks.finish import finish_evaluation, wait_for
from callbacks.heartbeat import Heartbeat, Watch
from datamodules import Digits
from lightning_modules import RobustnessEvaluation
from lustral.attacks import PGD
from lustral.evaluation import (
    Dealing,
    Fingerprint,
    Key,
    Protocol,
    Record,
    RecordFolder,
    compare,
    read_records,
    write_card,
)
from lustral.evaluation.audit import audited_indices
from lustral.evaluation.doubts import audited_records
from lustral.noise import NoiseStream
from lustral.purifiers import Context, Purified, Purifier
from lustral.reporting import load_runs, report
from lustral.reporting.paired import paired_comparisons
from lustral.threat import ThreatModel
from tests.contracts import NoisyPurifier, ToyClassifier

SIZE = 7


class GroupNoise(Purifier):
    """Adds the more noise, the brighter the image's group is. One group at a time, so that its bits are its own."""

    group_size = SIZE

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        strength = torch.cat([group.mean().expand(SIZE) for group in x.split(SIZE)])
        drawn = noise.normal(x.shape[1:], dtype=x.dtype)
        return Purified((x + strength[:, None, None, None] * drawn)[None])


class OneOf(Digits):
    """The data as one of several processes sees them."""

    rank, processes = 0, 1

    def _process(self) -> tuple[int, int]:
        return self.rank, self.processes


def _module(purifier: Purifier | None = None, **options: Any) -> RobustnessEvaluation:
    protocol = Protocol(**{"verdict_draws": 2, "audit_images": 0, "replicates": 2, **options})
    attack = PGD(2, eot=2, selection_draws=2, finalists=1)
    classifier = ToyClassifier(10, (1, 8, 8))
    return RobustnessEvaluation(
        classifier, purifier or GroupNoise(), attack, ThreatModel("linf", "8/255"), protocol, rows=16
    )


def _start(folder: Path, module: RobustnessEvaluation, data: OneOf, *callbacks: Callback) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        default_root_dir=folder,
        callbacks=[AttackRecords(), *callbacks],
    )
    trainer.test(module, data, verbose=False)
    return trainer


def _run(folder: Path, batch_size: int = SIZE, processes: int = 1, num_test: int = 42, **options: Any) -> list[Key]:
    """Every process's part, one after the other; returns the keys that were asked for."""
    dealing = None
    for rank in range(processes):
        data, module = OneOf(batch_size, num_test=num_test), _module(**options)
        data.rank, data.processes = rank, processes
        _start(folder, module, data)
        dealing = module.dealing
    assert dealing is not None
    return dealing.keys


def _lines(folder: Path) -> dict[Key, str]:
    return {key: record.to_json() for key, record in read_records(folder / "records").items()}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("groups")
    write_card(folder, _run(folder))
    return folder


@pytest.mark.parametrize(("batch_size", "processes"), [(21, 1), (7, 2), (21, 2), (14, 4)])
def test_batch_size_and_processes_change_no_bit(
    batch_size: int, processes: int, reference: Path, tmp_path: Path
) -> None:
    keys = _run(tmp_path, batch_size, processes)
    assert _lines(tmp_path) == _lines(reference)
    assert len(keys) == len(set(keys)) == 84
    shards = [path.read_text().count("\n") for path in (tmp_path / "records").glob("*.jsonl")]
    assert len(shards) == processes
    assert sum(shards) == 84, "no image is judged twice"
    assert all(count % SIZE == 0 for count in shards)


def test_records_name_their_groups(reference: Path) -> None:
    records, dealing = read_records(reference / "records"), _dealing(reference)
    assert list(records) == sorted(dealing.keys)
    for group in dealing.groups:
        assert {records[key].unit for key in group} == {group[0]}
    first, second = ({frozenset(i for _, i in g) for g in dealing.groups if g[0][0] == r} for r in (0, 1))
    assert not first & second, "the second replicate is another partition"
    assert any(not torch.equal(records[0, i].adversarial_logits, records[1, i].adversarial_logits) for _, i in records)


def _dealing(folder: Path, **options: Any) -> Dealing:
    indices = sorted({index for _, index in read_records(folder / "records")})
    return Dealing(indices, SIZE, **{"replicates": 2, **options})


@pytest.mark.parametrize("processes", [1, 2])
def test_a_group_without_some_of_its_records_is_judged_again_as_a_whole(
    processes: int, reference: Path, tmp_path: Path
) -> None:
    """Killed in the midst of writing a group; what was written of it, here with another distance, is replaced."""
    groups, records = _dealing(reference).groups, read_records(reference / "records")
    torn, gone = groups[3], groups[8]
    folder = RecordFolder(tmp_path / "records", _fingerprint(reference))
    kept = [record for key, record in records.items() if key not in gone and key not in torn]
    folder.append([*kept, *(replace(records[key], distance=9.0) for key in torn[:4])])
    folder.close()
    _run(tmp_path, 21, processes)
    assert _lines(tmp_path) == _lines(reference)
    shards = [path.read_text().count("\n") for path in (tmp_path / "records").glob("*.jsonl")]
    assert sum(shards) == 84 + 4, "the other groups were skipped"


def _fingerprint(folder: Path) -> Fingerprint:
    return Fingerprint(json.loads((folder / "records" / "fingerprint.json").read_text())["decides"])


def test_a_run_is_extended_by_replicates(reference: Path, tmp_path: Path) -> None:
    _run(tmp_path, 21, replicates=1)
    short = _lines(tmp_path)
    assert short == {key: line for key, line in _lines(reference).items() if key[0] == 0}
    _run(tmp_path, 21, replicates=2)
    assert _lines(tmp_path) == _lines(reference)


def test_other_images_are_another_partition_and_so_another_evaluation(tmp_path: Path) -> None:
    _run(tmp_path, num_test=14, replicates=1)
    with pytest.raises(ValueError, match=r"it differs in groups\.indices, groups\.num_test"):
        _run(tmp_path, num_test=21, replicates=1)


def test_the_card_counts_groups(reference: Path) -> None:
    card = json.loads((reference / "card.json").read_text())
    assert (card["n"], card["group_size"], card["replicates"], card["groups"]) == (42, SIZE, 2, 12)
    assert len(card["indices"]) == 42
    few = "only 12 random groups of 7 images were judged, and intervals over fewer than 100 are too narrow"
    assert card["too_few_groups"] == f"{few}: raise protocol.replicates to 17"
    records = read_records(reference / "records")
    right = [record.clean_logits[0].argmax() == record.label for record in records.values()]
    clean = card["verdicts"]["one_shot"]["clean"]
    assert clean["value"] == pytest.approx(sum(map(bool, right)) / 84), "a rate is over all records"
    alone = _module(NoisyPurifier(), replicates=1).evaluator.decides()
    assert "groups" not in alone
    assert "replicates" not in alone["protocol"]


def test_a_run_ends_with_card_and_panels_and_progress_counts_groups(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups, records = _dealing(reference).groups, read_records(reference / "records")
    folder = RecordFolder(tmp_path / "records", _fingerprint(reference))
    folder.append([records[key] for group in groups[:4] for key in group][:-2])
    folder.close()
    module, data = _module(), OneOf(SIZE, num_test=42)
    trainer = _start(tmp_path, module, data, InnerProgress(), Panels(num_images=4))
    card = finish_evaluation(trainer, module, data, "")
    assert {**card, "cost": 0} == {**json.loads((reference / "card.json").read_text()), "cost": 0}
    assert (tmp_path / "panels.png").exists()
    assert not (tmp_path / "levels.png").exists()
    told = capsys.readouterr().err
    assert "21 images have a record already and are skipped" in told, "the torn group is judged again"
    assert "63/63 images" in told


def test_who_ended_without_records_is_named(reference: Path, tmp_path: Path) -> None:
    """Of two processes the second wrote nothing: its share is what is missing."""
    dealing, records = _dealing(reference), read_records(reference / "records")
    first, second = dealing.shares(2)
    folder = RecordFolder(tmp_path / "records", _fingerprint(reference))
    folder.append([records[key] for key in first])
    folder.close()
    beat = Heartbeat(tmp_path, "start", 1)
    beat.start()
    beat.stop()
    with pytest.raises(OSError, match=f"{len(second)} records are missing.*process 1 ended"):
        wait_for(tmp_path / "records", [set(first), set(second)], Watch(tmp_path, "start"), "")


def test_runs_are_paired_by_replicate_and_image(reference: Path, tmp_path: Path) -> None:
    write_card(tmp_path, _run(tmp_path, replicates=1, purifier=NoisyPurifier()))
    whole, alone = load_runs([reference, tmp_path])
    assert len(whole.records) == 84
    for runs in ([whole, alone], [alone, whole]):
        ((pair,), _) = paired_comparisons(runs)
        assert pair.n == 42, "the second replicate has no partner"
        keys = [(0, index) for index in whole.card["indices"]]
        first, second = (run.verdicts(run.target, keys)[1] for run in runs)
        assert pair.robust == compare(first, second, clusters=whole.dependences(keys))
    (same,), _ = paired_comparisons([whole, whole])
    assert same.n == 84
    assert "judges 7 images together: all its intervals are a bootstrap over 12 groups" in report([reference])


# The audit --------------------------------------------------------------------------------------------------


def test_whole_groups_are_audited_and_found_again(reference: Path, tmp_path: Path) -> None:
    options = {"num_test": 28, "audit_images": 9, "replicates": 1, "known_noise": False}
    _run(tmp_path, 7, **options)
    records = list(read_records(tmp_path / "records").values())
    dealing = _dealing(tmp_path, replicates=1, audit_images=9)
    audited = {record.key for record in records if record.audit}
    assert audited == dealing.audited
    assert len(audited) == 14, "nine images are a part of two groups"
    assert {record.key for record in audited_records(records, 9, 0)} == audited
    assert len({record.unit for record in audited_records(records, 7, 0)}) == 1
    card = write_card(tmp_path, dealing.keys)
    assert (card["audit"]["num_images"], card["audit"]["asked"]) == (14, 14)


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_every_process_audits_as_many(processes: int) -> None:
    indices = [3 * i + 1 for i in range(50)]
    dealing = Dealing(indices, audit_images=16)
    shares = dealing.shares(processes)
    assert sorted(key for share in shares for key in share) == dealing.keys
    for counts in ([len(s) for s in shares], [len(dealing.audited & set(s)) for s in shares]):
        assert max(counts) - min(counts) <= 1
    assert {index for _, index in dealing.audited} == set(audited_indices(indices, 16, 0))
    assert all(share == sorted(share) for share in shares), "each in the order of the test"
    assert dealing.shares(1) == [dealing.keys] == [[(0, index) for index in indices]]
    plain = Dealing(indices).shares(processes)
    assert plain == [[(0, index) for index in indices[rank::processes]] for rank in range(processes)]


@pytest.mark.parametrize("processes", [2, 3])
def test_groups_are_dealt_as_wholes_and_audited_ones_apart(processes: int) -> None:
    dealing = Dealing(range(84), SIZE, 2, audit_images=4 * SIZE)
    shares = dealing.shares(processes)
    assert sorted(key for share in shares for key in share) == sorted(dealing.keys)
    groups = set(dealing.groups)
    for share in shares:
        assert {tuple(share[i : i + SIZE]) for i in range(0, len(share), SIZE)} <= groups
    counts = [len(dealing.audited & set(share)) // SIZE for share in shares]
    assert max(counts) - min(counts) <= 1


def test_a_partition_depends_on_seed_number_and_set_alone() -> None:
    whole = Dealing(range(42), SIZE, 2)
    assert Dealing([*reversed(range(42))], SIZE, 2).groups == whole.groups
    assert Dealing(range(42), SIZE, 1).groups == whole.groups[:6]
    assert Dealing(range(42), SIZE, 2, seed=1).groups != whole.groups


# Refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"num_test": 45}, r"45 images are tested.*groups of 7.*set --data\.num_test to 42 or 49\."),
        ({"num_test": 3}, r"3 images are tested.*set --data\.num_test to 7\."),
        ({"num_test": 42, "batch_size": 16}, r"data\.batch_size is 16.*set it to 14 or 21"),
        ({"num_test": 42, "batch_size": 2}, r"data\.batch_size is 2.*set it to 7,"),
    ],
)
def test_what_cuts_a_group_is_refused_before_any_work(data: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        _start(tmp_path, _module(), OneOf(**{"batch_size": SIZE, **data}))
    assert not (tmp_path / "records").exists()


def test_more_than_one_partition_into_groups_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"protocol\.replicates is 2.*set it to 1"):
        _module(NoisyPurifier())
    with pytest.raises(ValueError, match="at least 1"):
        Protocol(replicates=0)


def test_a_loader_that_cuts_groups_is_refused() -> None:
    images, index = torch.rand(9, 1, 8, 8), torch.arange(9)
    with pytest.raises(ValueError, match=r"9 images of a replicate.*7 together"):
        _module().test_step((images, index % 10, index), 0)


# Images that are judged alone -------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2])
def test_images_that_are_judged_alone_come_in_the_order_of_the_test(processes: int) -> None:
    module = _module(NoisyPurifier(), replicates=1, audit_images=4)
    data = OneOf(4, num_test=10)
    data.processes = processes
    trainer = Trainer(accelerator="cpu", logger=False, inference_mode=False, enable_progress_bar=False)
    data.trainer = trainer
    trainer.strategy._lightning_module = module
    module.dealing = module._deal(data, "test")
    found = list(data.test_dataloader())
    assert all(len(batch) == 3 for batch in found)
    indices = [(0, index) for batch in found for index in batch[2].tolist()]
    assert indices == module.dealing.shares(processes)[0]


def test_a_record_of_an_image_that_is_judged_alone_has_no_group() -> None:
    module = _module(NoisyPurifier(), replicates=1)
    found = list[Record]()
    module.hand_on(found.extend)
    module.test_step((torch.rand(4, 1, 8, 8), torch.arange(4), torch.arange(4)), 0)
    assert [(record.key, record.group) for record in found] == [((0, i), None) for i in range(4)]
