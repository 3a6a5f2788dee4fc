"""The training of DAD's denoiser: its loss, its stored adversarial images, resuming; and the calibration beside it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules import Digits
from lightning_modules import DenoiserTraining, DetectorCalibration
from lustral.attacks import MMA
from lustral.detectors import GaussianKernel, GroupMMD, SampleMMD, StoredReference, mmd, read_threshold
from lustral.networks import DUNet, load_classifier
from lustral.purifiers.pixel_noise import noised
from lustral.threat import ThreatModel
from lustral.training import AdversarialSet, DenoiserLoss
from tests.contracts import ToyClassifier, images, stream

THREAT = ThreatModel("linf", 0.15)


class Few(Digits):
    """A few digits to train on."""

    def split_train(self) -> tuple[list[int], list[int]]:
        train, val = super().split_train()
        return train[:24], val[:6]


def _data() -> Few:
    return Few(batch_size=8)


def _module(weights: Path, **options: Any) -> DenoiserTraining:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = DUNet(8, 1, (4, 4), (1, 1))
    classifier = load_classifier(str(weights))
    return DenoiserTraining(denoiser, classifier, GaussianKernel(5.0), MMA(2, 2), THREAT, rows=16, **options)


def _trainer(folder: Path, epochs: int, *callbacks: Any) -> Trainer:
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=bool(callbacks),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )


def _keep(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder / "part", filename="last")


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_the_loss_is_its_equation(estimator: Any) -> None:
    denoiser, classifier, kernel = DUNet(4, 1, (2, 2), (1, 1)).eval(), ToyClassifier(), GaussianKernel(3.0)
    kernel.requires_grad_(False)
    clean, attacked, y = images(5), images(5, seed=1), torch.tensor([0, 1, 2, 1, 0])
    loss = DenoiserLoss(0.5, estimator)
    terms = loss.terms(denoiser, classifier, kernel, clean, attacked, y, stream(5))
    denoised = denoiser(noised(attacked, stream(5), 0.25, "rectified"))
    expected = mmd(kernel, clean, denoised, estimator) + 0.5 * F.cross_entropy(classifier(denoised), y)
    torch.testing.assert_close(loss.total(terms).double(), expected, rtol=1e-5, atol=1e-6)
    single = loss.terms(denoiser, classifier, kernel, clean[:1], attacked[:1], y[:1], stream(1))
    assert single.discrepancy is None
    torch.testing.assert_close(loss.total(single), 0.5 * single.cross_entropy[0])


def test_a_training_that_was_interrupted_ends_with_the_same_bits(
    digit_weights: dict[str, Path], tmp_path: Path
) -> None:
    weights = digit_weights["classifier"]
    whole = _module(weights)
    _trainer(tmp_path / "whole", 3).fit(whole, _data())
    _trainer(tmp_path / "part", 1, _keep(tmp_path)).fit(_module(weights), _data())
    made = (tmp_path / "part" / "adversarial" / "images.npy").read_bytes()
    for name in ("images", "done"):  # as if a third of the set had not been made
        np.load(tmp_path / "part" / "adversarial" / f"{name}.npy", mmap_mode="r+")[::3] = 0
    state = torch.load(tmp_path / "part" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith("denoiser.") for name in state), "frozen networks are in no checkpoint"
    again = _module(weights)
    _trainer(tmp_path / "part", 3, _keep(tmp_path)).fit(again, _data(), ckpt_path=tmp_path / "part" / "last.ckpt")
    assert (tmp_path / "part" / "adversarial" / "images.npy").read_bytes() == made
    for name, tensor in whole.denoiser.state_dict().items():
        assert torch.equal(tensor, again.denoiser.state_dict()[name]), name
    assert all(parameter.grad is None for parameter in again.classifier.parameters())


def test_adversarial_images_may_be_made_anew(digit_weights: dict[str, Path], tmp_path: Path) -> None:
    module = _module(digit_weights["classifier"], adversarial="every_epoch")
    before = module.denoiser.last.weight.detach().clone()
    _trainer(tmp_path, 1).fit(module, _data())
    assert not (tmp_path / "adversarial").exists()
    assert not torch.equal(module.denoiser.last.weight, before)


def test_a_random_classifier_and_wrong_options_are_refused(digit_weights: dict[str, Path], tmp_path: Path) -> None:
    module = _module(digit_weights["classifier"])
    module.classifier.weights = None
    with pytest.raises(ValueError, match="classifier has random weights"):
        _trainer(tmp_path, 1).fit(module, _data())
    with pytest.raises(ValueError, match="mirror is for a stored set"):
        _module(digit_weights["classifier"], adversarial="every_epoch", mirror=True)
    with pytest.raises(ValueError, match="alpha is -1"):
        DenoiserLoss(-1.0)


def test_a_stored_set_goes_on_and_refuses_another(tmp_path: Path) -> None:
    kept = AdversarialSet(tmp_path, [7, 3, 5], (1, 2, 2), {"attack": "a"})
    assert kept.missing().tolist() == [3, 5, 7]
    kept.write(torch.tensor([5]), torch.full((1, 1, 2, 2), 0.5))
    again = AdversarialSet(tmp_path, [3, 5, 7], (1, 2, 2), {"attack": "a"}, create=False)
    assert again.missing().tolist() == [3, 7]
    assert torch.equal(again.read(torch.tensor([5])), torch.full((1, 1, 2, 2), 0.5))
    with pytest.raises(ValueError, match="lacks some of the images"):
        again.read(torch.tensor([5, 3]))
    with pytest.raises(ValueError, match="is of other images"):
        again.read(torch.tensor([4]))
    with pytest.raises(ValueError, match="made with another attack"):
        AdversarialSet(tmp_path, [3, 5, 7], (1, 2, 2), {"attack": "b"})
    with pytest.raises(ValueError, match="made with another positions_sha256"):
        AdversarialSet(tmp_path, [3, 5], (1, 2, 2), {"attack": "a"})
    with pytest.raises(FileNotFoundError, match="no adversarial set"):
        AdversarialSet(tmp_path / "none", [3], (1, 2, 2), {}, create=False)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_calibration_writes_a_reference_and_a_threshold_of_its_size(part: Any, tmp_path: Path) -> None:
    detector = GroupMMD(GaussianKernel(5.0))
    options = {"group_size": 6, "false_alarm_rate": 0.1, "num_reference": 40, "num_groups": 50, "num_pool": 60}
    module = DetectorCalibration(detector, calibrate_on=part, **options)  # type: ignore[arg-type]
    _trainer(tmp_path, 1).validate(module, Digits(batch_size=64), verbose=False)
    data = Digits()
    reference = StoredReference(str(tmp_path / "reference.safetensors"))
    assert reference.index.tolist() == data.train_parts[1][:40]
    threshold = read_threshold(tmp_path / "threshold.json")
    threshold.check(GroupMMD(GaussianKernel(5.0), reference=reference), 6)
    assert json.loads((tmp_path / "threshold.json").read_text())["num_clean"] == 50
    with pytest.raises(ValueError, match="not of 5"):
        threshold.check(detector, 5)


def test_a_detector_of_single_images_is_calibrated_on_each(tmp_path: Path) -> None:
    module = DetectorCalibration(SampleMMD(GaussianKernel(5.0)), num_reference=30)
    _trainer(tmp_path, 1).validate(module, Digits(batch_size=64), verbose=False)
    assert read_threshold(tmp_path / "threshold.json").num_clean == 100


def test_an_attacker_s_reference_is_of_training_images_and_calibrates_on_others(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_reference": 40, "reference_of": "train", "calibrate_on": "train"}
    module = DetectorCalibration(SampleMMD(GaussianKernel(5.0)), **options)
    _trainer(tmp_path, 1).validate(module, Digits(batch_size=64), verbose=False)
    train = Digits().train_parts[0]
    reference = StoredReference(str(tmp_path / "reference.safetensors"))
    assert len(set(reference.index.tolist()) & set(train)) == 40
    assert read_threshold(tmp_path / "threshold.json").num_clean == len(train) - 40
    with pytest.raises(ValueError, match="reference_of is 'test'"):
        DetectorCalibration(SampleMMD(GaussianKernel(5.0)), reference_of="test")  # type: ignore[arg-type]


def test_a_calibration_without_enough_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="judges groups: give 2 or more"):
        DetectorCalibration(GroupMMD(GaussianKernel(5.0)))
    with pytest.raises(ValueError, match="judges single images: leave it 1"):
        DetectorCalibration(SampleMMD(GaussianKernel(5.0)), group_size=2)
    module = DetectorCalibration(GroupMMD(GaussianKernel(5.0)), group_size=100, num_reference=100)
    with pytest.raises(ValueError, match="The pool has 30 images, and a group 100"):
        _trainer(tmp_path, 1).validate(module, Digits(batch_size=64), verbose=False)


@pytest.mark.parametrize("record", ["[]", '{"made_by": null}'])
def test_a_set_without_a_description_is_refused(record: str, tmp_path: Path) -> None:
    AdversarialSet(tmp_path, [3], (1, 2, 2), {"attack": "a"})
    (tmp_path / "set.json").write_text(record)
    with pytest.raises(ValueError, match="describes no set"):
        AdversarialSet(tmp_path, [3], (1, 2, 2), {"attack": "a"})
