"""Records of what purification does: values that are known beforehand, and bits that no neighbour changes."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lustral.attacks import PGD, Cases
from lustral.evaluation import Defence, Evaluator, Fingerprint, Protocol, RecordFolder
from lustral.evaluation.adversarial_images import AdversarialImages, FoundInRun, MadeByAttack
from lustral.evaluation.image_quality import CEILING
from lustral.evaluation.quality import KINDS, PAIRS, QualityEvaluator, QualityRecord
from lustral.evaluation.quality_card import make_quality_card
from lustral.noise import NoiseStream
from lustral.purifiers import Context, Identity, Purified, Purifier
from lustral.threat import ThreatModel
from tests.contracts import NoisyPurifier, ToyClassifier, right_cases

THREAT = ThreatModel("linf", 0.1)


def _attack() -> PGD:
    return PGD(2, eot=1, selection="last", surrogate=Identity())


def _evaluator(purifier: Purifier, source: AdversarialImages | None = None, **options: Any) -> QualityEvaluator:
    chosen: dict[str, Any] = {"draws": 1, "seed": 0, "rows": 8} | options
    return QualityEvaluator(Defence(ToyClassifier(), purifier), source or MadeByAttack(_attack(), THREAT), **chosen)


class Undoing(Purifier):
    """Knows the clean images by their number, and gives them back."""

    random = False

    def __init__(self, cases: Cases) -> None:
        super().__init__()
        self.known = {int(index): image for index, image in zip(cases.index, cases.images, strict=True)}

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        return Purified(torch.stack([self.known[index] for index in noise.index.tolist()])[None])


class Ruining(Purifier):
    """Turns the first image into NaN."""

    random = False

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        broken = (noise.index == 0)[:, None, None, None]
        return Purified(torch.where(broken, torch.nan, x)[None])


def test_no_purifier_changes_nothing() -> None:
    for record in _evaluator(Identity()).evaluate(right_cases(5)):
        values = record.values
        assert values["psnr purified clean"] == values["psnr purification"] == CEILING
        assert values["distance purified clean"] == values["distance purification"] == 0.0
        assert values["ssim purified clean"] == pytest.approx(1.0, abs=1e-5)
        assert values["distance purified adversarial"] == values["distance adversarial"] > 0
        assert values["closer"] == values["alignment"] == 0.0
        assert values["right clean"] == values["right purified clean"] == 1.0
        assert record.features.shape == (len(KINDS), 128)
        assert torch.equal(record.features[1], record.features[3])


def test_a_purifier_that_undoes_the_attack_removes_just_that() -> None:
    chosen = right_cases(5)
    for record in _evaluator(Undoing(chosen)).evaluate(chosen):
        assert record.values["alignment"] == pytest.approx(1.0)
        assert record.values["closer"] == record.values["right purified adversarial"] == 1.0
        assert record.values["distance purified adversarial"] == 0.0
        assert record.values["distance purification"] == record.values["distance adversarial"]


def test_distances_are_those_of_the_features_of_the_images() -> None:
    evaluator = _evaluator(NoisyPurifier(0.2))
    chosen = right_cases(3)
    (record, *_) = evaluator.evaluate(chosen)
    clean, adversarial, purified = record.features[0], record.features[1], record.features[3]
    assert record.values["distance adversarial"] == pytest.approx(float((adversarial - clean).norm()), rel=1e-5)
    assert record.values["distance purified adversarial"] == pytest.approx(float((purified - clean).norm()), rel=1e-5)
    torch.testing.assert_close(evaluator.defence.classifier.features(record.image[None])[0], adversarial)


def test_bits_depend_on_no_neighbour_and_are_those_of_a_robustness_evaluation() -> None:
    chosen = right_cases(7)
    together = _evaluator(NoisyPurifier(0.2), draws=3).evaluate(chosen)
    order = torch.tensor([4, 0, 6])
    apart = _evaluator(NoisyPurifier(0.2), draws=3).evaluate(chosen.select(order))
    for place, record in zip(order.tolist(), apart, strict=True):
        assert record.values == together[place].values
        assert torch.equal(record.features, together[place].features)
        assert torch.equal(record.image, together[place].image)
    defence = Defence(ToyClassifier(), NoisyPurifier(0.2))
    judged = Evaluator(defence, _attack(), THREAT, Protocol(3, 0), 0, 8).evaluate(
        chosen, torch.zeros(7, dtype=torch.bool)
    )
    for one, other in zip(judged, together, strict=True):
        assert torch.equal(one.image, other.image)
        right = (one.adversarial_logits.argmax(1) == one.label).double().mean()
        assert other.values["right purified adversarial"] == pytest.approx(float(right))


def test_values_are_means_over_draws() -> None:
    """Three draws at once are the draws one by one: of those the first is the first."""
    chosen = right_cases(2)
    (one, _), (three, _) = (_evaluator(NoisyPurifier(0.2), draws=n).evaluate(chosen) for n in (1, 3))
    assert torch.equal(one.features, three.features)
    assert one.values["psnr adversarial"] == pytest.approx(three.values["psnr adversarial"])
    assert one.values["psnr purified clean"] != three.values["psnr purified clean"]
    assert three.values["right purified adversarial"] * 3 == pytest.approx(
        round(three.values["right purified adversarial"] * 3)
    )


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    (record, *_) = _evaluator(NoisyPurifier()).evaluate(right_cases(1))
    again = QualityRecord.from_json(record.to_json())
    assert again.values == record.values
    assert torch.equal(again.features, record.features)
    assert again.key == record.key == (0, 0)


def _card(evaluator: QualityEvaluator, records: list[QualityRecord], **decides: Any) -> dict[str, Any]:
    content = {**evaluator.decides(), **decides}
    return json.loads(
        json.dumps(make_quality_card(records, {"decides": content, "sha256": "0"}, [evaluator.cost.line()]))
    )


def test_a_card_has_means_and_intervals_of_every_pair() -> None:
    evaluator = _evaluator(NoisyPurifier(0.2))
    records = evaluator.evaluate(right_cases(9))
    card = _card(evaluator, records)
    assert (card["kind"], card["status"], card["n"], card["failed_samples"]) == ("quality", "ok", 9, 0)
    assert card["quality"].keys() == PAIRS.keys()
    for pair, rates in card["quality"].items():
        assert rates.keys() == {"psnr", "ssim", "distance"}
        for name, rate in rates.items():
            assert rate["value"] == pytest.approx(sum(r.values[f"{name} {pair}"] for r in records) / 9)
            assert rate["low"] <= rate["value"] <= rate["high"]
    assert card["right"]["clean"]["value"] == 1.0
    assert card["right"]["clean"]["low"] < 1.0
    assert card["attack"]["class"] == "PGD"
    assert card["cost"]["defence"]["draws"] == 2 * 9
    assert card["cost"]["defence"]["calls_per_image"] == {"classifier_forward": 1.0}
    assert (
        _card(evaluator, records, untrained=["classifier"])["status"] == "suspect: the weights of classifier are random"
    )


def test_failed_samples_are_counted_and_left_out() -> None:
    evaluator = _evaluator(Ruining())
    records = evaluator.evaluate(right_cases(3))
    assert [record.failed for record in records] == [True, False, False]
    assert records[0].values == {}
    card = _card(evaluator, records)
    assert card["failed_samples"] == 1
    assert card["status"] == "suspect: 1 samples failed (NaN or Inf)"
    with pytest.raises(ValueError, match="1 images were purified and all of them failed"):
        _card(evaluator, records[:1])
    with pytest.raises(ValueError, match="no record yet"):
        _card(evaluator, [])


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="draws is 0; it must be at least 1"):
        _evaluator(Identity(), draws=0)
    with pytest.raises(ValueError, match="lpips is alex, which compares images of 32 pixels or more, not 4"):
        _evaluator(Identity(), lpips="alex")


# Adversarial images of a finished run ------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A robustness evaluation of four images on data "toys"."""
    evaluator = Evaluator(Defence(ToyClassifier(), NoisyPurifier()), PGD(1, eot=1), THREAT, Protocol(2, 0), 5, 8)
    folder = RecordFolder(tmp_path / "records", Fingerprint({**evaluator.decides(), "data": {"dataset": "toys"}}))
    folder.append(evaluator.evaluate(right_cases(4), torch.zeros(4, dtype=torch.bool)))
    folder.close()
    return tmp_path


def test_images_are_found_in_a_run(finished: Path) -> None:
    source, chosen = FoundInRun(finished, ToyClassifier()), right_cases(4)
    source.check({"dataset": "toys"}, [(0, int(index)) for index in chosen.index], (1, 4, 4))
    evaluator = _evaluator(Identity(), source)
    assert evaluator.attack is None
    assert evaluator.decides()["adversarial"]["attack"]["num_steps"] == 1
    recorded = RecordFolder(finished / "records", _fingerprint(finished)).read()
    for record in evaluator.evaluate(chosen.select(torch.tensor([2, 0]))):
        assert torch.equal(record.image, recorded[record.key].image)
    assert _card(evaluator, evaluator.evaluate(chosen))["adversarial"]["recorded_by"] == _fingerprint(finished).sha256


def _fingerprint(run: Path) -> Fingerprint:
    return Fingerprint(json.loads((run / "records" / "fingerprint.json").read_text())["decides"])


def test_runs_of_something_else_are_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no records in .*nowhere: let adversarial_from name"):
        FoundInRun(tmp_path / "nowhere", ToyClassifier())
    with pytest.raises(ValueError, match="attacked another classifier"):
        FoundInRun(finished, ToyClassifier(seed=1))
    source = FoundInRun(finished, ToyClassifier())
    with pytest.raises(ValueError, match="attacked images of other data"):
        source.check({"dataset": "toys", "split": "validation"}, [(0, 0)], (1, 4, 4))
    with pytest.raises(ValueError, match="has no record of 1 of 2 images"):
        source.check({"dataset": "toys"}, [(0, 0), (0, 1)], (1, 4, 4))
    other = tmp_path / "other"
    RecordFolder(other / "records", Fingerprint(_evaluator(Identity()).decides()))
    with pytest.raises(ValueError, match="is no robustness evaluation"):
        FoundInRun(other, ToyClassifier())
