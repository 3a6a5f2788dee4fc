"""An evaluation under corruptions, from the data to the card: no number depends on how the work was done."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from callbacks import AttackRecords, InnerProgress
from callbacks.finish import finish_evaluation
from datamodules import CIFAR10C, Digits
from lightning_modules import CorruptionEvaluation
from lustral.attacks import Engine
from lustral.corruptions import CommonCorruptions
from lustral.evaluation import CorruptionRecord, Defence, Expected, Key, Protocol, read_records
from lustral.noise import NoiseStream
from lustral.purifiers import Identity, Purifier
from tests.contracts import NoisyPurifier, ToyClassifier
from tests.datamodules.fixtures import write_cifar10c
from tests.lightning_modules.test_groups import SIZE, GroupNoise, OneOf

CORRUPTIONS = CommonCorruptions(types=["shot_noise", "fog", "contrast"], severities=[1, 5])
DRAWS = 3


def _module(purifier: Purifier | None = None, **options: Any) -> CorruptionEvaluation:
    given: dict[str, Any] = {"corruptions": CORRUPTIONS, "protocol": Protocol(DRAWS), "rows": 16, **options}
    classifier = given.pop("classifier", None) or ToyClassifier(10, (1, 8, 8))
    return CorruptionEvaluation(classifier, purifier or NoisyPurifier(0.3), **given)


def _start(folder: Path, module: CorruptionEvaluation, data: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        default_root_dir=folder,
        callbacks=[AttackRecords(), InnerProgress()],
    )
    trainer.test(module, data, verbose=False)
    return trainer


def _lines(folder: Path) -> dict[Key, str]:
    return {key: record.to_json() for key, record in read_records(folder / "records", None, CorruptionRecord).items()}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corruptions")
    _start(folder, _module(), OneOf(14, num_test=14))
    return folder


@pytest.mark.parametrize(("batch_size", "processes"), [(5, 1), (4, 2), (14, 3)])
def test_batch_size_and_processes_change_no_bit(
    batch_size: int, processes: int, reference: Path, tmp_path: Path
) -> None:
    for rank in range(processes):
        data = OneOf(batch_size, num_test=14)
        data.rank, data.processes = rank, processes
        _start(tmp_path, _module(), data)
    assert _lines(tmp_path) == _lines(reference)


def test_a_run_goes_on_and_refuses_another_evaluation(reference: Path, tmp_path: Path) -> None:
    _start(tmp_path, _module(), OneOf(4, num_test=6))
    _start(tmp_path, _module(), OneOf(7, num_test=14))
    assert _lines(tmp_path) == _lines(reference)
    assert sum(path.read_text().count("\n") for path in (tmp_path / "records").glob("*.jsonl")) == 14
    others: tuple[dict[str, Any], ...] = (
        {"corruptions": CommonCorruptions(types=["fog"])},
        {"seed": 1},
        {"protocol": Protocol(2)},
        {"purifier": NoisyPurifier(0.2)},
    )
    for other in others:
        with pytest.raises(ValueError, match="holds records of another evaluation"):
            _start(tmp_path, _module(**other), OneOf(4, num_test=6))


def test_records_are_what_defence_and_classifier_say_of_each_image(reference: Path) -> None:
    records = read_records(reference / "records", None, CorruptionRecord)
    classifier, purifier, data = ToyClassifier(10, (1, 8, 8)).eval(), NoisyPurifier(0.3), Digits()
    record = records[0, data.test_indices[2]]
    index = torch.tensor([record.index])
    noise, label = NoiseStream(0, index), torch.tensor([record.label])
    assert [tuple(cell) for cell in record.cells] == [("clean", 0), *CORRUPTIONS.cells]
    for column, (name, severity) in enumerate(record.cells):
        x, path = data.test_images([record.index]), ("verdict", "clean")
        if severity:
            x, path = CORRUPTIONS(x, name, severity, noise), ("verdict", name, f"severity {severity}")
        for side, defence in (("defended", Defence(classifier, purifier)), ("bare", Defence(classifier, Identity()))):
            logits = Engine(defence, 16).logits(x, noise.fork(*path), DRAWS)
            assert getattr(record, side)[3, column] == Expected(DRAWS)(logits, label).float()


def test_a_run_ends_with_a_card_and_lines(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, data = _module(), OneOf(14, num_test=14)
    trainer = _start(tmp_path, module, data)
    card = finish_evaluation(trainer, module, data, "")
    told = capsys.readouterr()
    assert "right under corruptions so far" in told.err
    assert "severity 5" in told.out
    assert "With minus without the purifier" in told.out
    assert json.loads((tmp_path / "card.json").read_text()) == card
    found = card["accuracy"]["expected"]
    records = list(read_records(reference / "records", None, CorruptionRecord).values())
    for side in ("defended", "bare"):
        values = torch.stack([getattr(record, side)[3] for record in records]).double()
        assert found[side]["clean"]["value"] == pytest.approx(float(values[:, 0].mean()), abs=1e-6)
        assert found[side]["mean"]["value"] == pytest.approx(float(values[:, 1:].mean()), abs=1e-6)
        assert found[side]["cells"]["fog"]["5"]["value"] == pytest.approx(float(values[:, 4].mean()), abs=1e-6)
        assert found[side]["by_type"]["fog"]["value"] == pytest.approx(float(values[:, 3:5].mean()), abs=1e-6)
        assert found[side]["by_severity"]["1"]["value"] == pytest.approx(float(values[:, 1::2].mean()), abs=1e-6)
    assert card["status"] == "suspect: the weights of classifier are random"
    assert card["cost"]["defence"]["network_calls_per_image"] == 1
    assert card["cost"]["network_calls_per_image"] == 7 * (DRAWS + 1)
    assert (tmp_path / "corruptions.png").is_file()


def test_without_a_purifier_both_sides_are_one(tmp_path: Path) -> None:
    module, data = _module(Identity()), OneOf(5, num_test=5)
    card = finish_evaluation(_start(tmp_path, module, data), module, data, "")
    for rule in card["accuracy"].values():
        assert rule["defended"] == rule["bare"]
        assert rule["difference"]["difference"] == 0
    assert card["cost"]["network_calls_per_image"] == 7


def test_images_are_corrupted_group_by_group(tmp_path: Path) -> None:
    lines = []
    for number, batch_size in enumerate((SIZE, 2 * SIZE)):
        folder, module = tmp_path / str(number), _module(GroupNoise(), protocol=Protocol(2, replicates=2))
        data = OneOf(batch_size, num_test=2 * SIZE)
        card = finish_evaluation(_start(folder, module, data), module, data, "")
        assert (card["n"], card["replicates"], card["group_size"]) == (2 * SIZE, 2, SIZE)
        assert "random groups" in card["status"] or card["status"].startswith("suspect")
        lines.append(_lines(folder))
    assert lines[0] == lines[1]


class Broken(ToyClassifier):
    """Answers NaN where an image is bright."""

    def logits(self, x: Tensor) -> Tensor:
        bad = (x.mean((1, 2, 3)) > -0.7)[:, None]  # normalised: 0.325 as a pixel
        return torch.where(bad, torch.nan, super().logits(x))


def test_nan_counts_as_wrong_and_makes_a_run_suspect(tmp_path: Path) -> None:
    module, data = _module(Identity(), classifier=Broken(10, (1, 8, 8))), OneOf(6, num_test=6)
    card = finish_evaluation(_start(tmp_path, module, data), module, data, "")
    assert card["failed_samples"] > 0
    assert "met NaN or Inf" in card["status"]


class Leaky(CommonCorruptions):
    """Looks at the batch."""

    def __call__(self, x: Tensor, name: str, severity: int, noise: NoiseStream) -> Tensor:
        return super().__call__(x, name, severity, noise) * x.mean()


class Drawing(CommonCorruptions):
    """Draws from the global generator."""

    def __call__(self, x: Tensor, name: str, severity: int, noise: NoiseStream) -> Tensor:
        np.random.rand()  # noqa: NPY002
        return super().__call__(x, name, severity, noise)


@pytest.mark.parametrize(("kind", "told"), [(Leaky, "other pixels"), (Drawing, "global generator")])
def test_corruptions_that_do_not_follow_their_key_are_refused(
    kind: type[CommonCorruptions], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"The corruption fog .*{told}"):
        _start(tmp_path, _module(corruptions=kind(types=["fog"])), OneOf(4, num_test=4))
    assert not (tmp_path / "records").exists()


# Corrupted already ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cifar10c(tmp_path_factory.mktemp("data"), types=["fog", "snow"])


def _disk(root: Path, batch_size: int = 4) -> CIFAR10C:
    return CIFAR10C(str(root), types=["fog", "snow"], severities=[2, 4], batch_size=batch_size)


def _on_disk(**options: Any) -> CorruptionEvaluation:
    return _module(corruptions=None, classifier=ToyClassifier(10, (3, 32, 32)), **options)


def test_images_from_disk_are_told_by_type_and_severity(root: Path, tmp_path: Path) -> None:
    module, data = _on_disk(), _disk(root)
    card = finish_evaluation(_start(tmp_path, module, data), module, data, "")
    assert card["n"] == 4
    found = card["accuracy"]["majority"]["bare"]
    assert "clean" not in found
    classifier = ToyClassifier(10, (3, 32, 32)).eval()
    for name in ("snow", "fog"):
        for severity in (2, 4):
            indices = [i for i in data.test_indices if data.corruption_of([i])[0][:2] == (name, severity)]
            right = classifier(data.test_images(indices)).argmax(1) == torch.arange(4)
            assert found["cells"][name][str(severity)]["value"] == right.double().mean()
    assert list(found["by_type"]) == ["snow", "fog"]


def test_images_are_corrupted_once(root: Path, tmp_path: Path) -> None:
    def refused(module: CorruptionEvaluation, data: Any) -> str:
        with pytest.raises(ValueError) as error:
            _start(tmp_path, module, data)
        return str(error.value)

    assert "CIFAR10C are corrupted already" in refused(_module(classifier=ToyClassifier(10, (3, 32, 32))), _disk(root))
    assert "Digits are not corrupted" in refused(_module(corruptions=None), Digits(num_test=4))
    assert "in one group of 7" in refused(_on_disk(purifier=GroupNoise()), _disk(root, SIZE))
    assert not (tmp_path / "records").exists()
