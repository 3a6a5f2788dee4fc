"""The card and its audit: numbers where the interface promises them, and a plain word for a doubtful run."""

import json
import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lustral.attacks import PGD, RandomDirections
from lustral.evaluation import (
    Evaluator,
    Fingerprint,
    Protocol,
    Record,
    RecordFolder,
    all_rules,
    make_card,
    write_card,
)
from lustral.evaluation.attacked import zero_share
from lustral.evaluation.card import verdicts
from lustral.noise import NoiseStream
from lustral.purifiers import Context, Identity, Purified, Purifier
from lustral.threat import ThreatModel
from tests.contracts import NoisyPurifier, right_cases, toy_evaluator

DRAWS = 8


def _run(evaluator: Evaluator, batch: int = 24) -> tuple[list[Record], dict[str, Any]]:
    chosen = right_cases(batch)
    records = evaluator.evaluate(chosen, torch.arange(batch) < evaluator.protocol.audit_images)
    fingerprint = Fingerprint(evaluator.decides())
    content = {"sha256": fingerprint.sha256, "decides": json.loads(json.dumps(fingerprint.decides))}
    return records, make_card(records, content, [vars(evaluator.cost)], {"host": "here"})


@pytest.fixture(scope="module")
def healthy() -> tuple[list[Record], dict[str, Any]]:
    return _run(toy_evaluator(NoisyPurifier(0.05), PGD(10, eot=2, selection_draws=4)))


def test_the_card_has_the_promised_keys(healthy: tuple[list[Record], dict[str, Any]]) -> None:
    records, card = healthy
    assert json.loads(json.dumps(card, allow_nan=False)) == card, "a card is plain JSON"
    assert card["schema"] == 1
    assert card["status"] == "ok"
    assert card["n"] == len(records) == 24
    assert {"one_shot", "majority", "expected", "worst"} <= card["verdicts"].keys()
    for verdict in card["verdicts"].values():
        for kind in ("clean", "robust"):
            assert verdict[kind].keys() == {"value", "low", "high"}
            assert 0 <= verdict[kind]["low"] <= verdict[kind]["value"] <= verdict[kind]["high"] <= 1
    assert {"network_calls_per_image", "seconds_per_image", "peak_memory_mib"} <= card["cost"].keys()
    cost, own = card["cost"], card["cost"]["defence"]
    numbers = [cost[key] for key in cost.keys() - {"calls_per_image", "audit", "defence"}]
    numbers += [own[key] for key in own.keys() - {"calls_per_image"}]
    assert all(math.isfinite(number) and number > 0 for number in numbers)
    assert own["draws"] == 24 * DRAWS
    for key in ("audit", "attack", "defence", "provenance"):
        assert isinstance(card[key], dict)
        assert card[key]
    assert isinstance(card["fingerprint"], str)
    assert card["attack"]["class"] == "PGD"
    assert card["attack"]["threat"]["eps"] == "24/255"


def test_the_rule_that_was_aimed_at_is_named(healthy: tuple[list[Record], dict[str, Any]]) -> None:
    _, card = healthy
    assert [name for name, verdict in card["verdicts"].items() if verdict["aimed_at"]] == ["expected"]
    assert card["verdicts"]["one_shot"]["draws"] == 1
    assert card["verdicts"]["worst"]["draws"] == DRAWS


def test_the_numbers_are_the_records(healthy: tuple[list[Record], dict[str, Any]]) -> None:
    records, card = healthy
    right = [[float(row.argmax() == r.label) for row in r.adversarial_logits] for r in records]
    expected = sum(sum(row) / DRAWS for row in right) / len(right)
    assert card["verdicts"]["expected"]["robust"]["value"] == pytest.approx(expected)
    assert card["verdicts"]["worst"]["robust"]["value"] == pytest.approx(sum(min(row) for row in right) / len(right))
    clean = card["verdicts"]["expected"]["clean"]["value"]
    assert expected < clean - 0.2, "the fixture must show an attack that works"


def test_a_healthy_run_shows_what_was_asked(healthy: tuple[list[Record], dict[str, Any]]) -> None:
    _, card = healthy
    audit = card["audit"]
    assert audit["num_images"] == 8
    accuracy = audit["expected_accuracy"]
    assert {
        "attack",
        "random_directions",
        "bpda",
        "double_eps",
        "large_eps",
        "known_noise",
    } <= accuracy.keys()
    assert accuracy["large_eps"] <= 0.05
    assert accuracy["double_eps"] <= accuracy["attack"] + 0.1
    assert accuracy["random_directions"] >= accuracy["attack"]
    assert audit["zero_gradient_share"] == 0
    assert audit["failed_samples"] == []
    assert audit["loss"]["mean_gain"] > 0


def test_an_undefended_classifier_is_healthy() -> None:
    _, card = _run(toy_evaluator(Identity(), PGD(10)))
    assert card["status"] == "ok"
    assert "bpda" not in card["audit"]["expected_accuracy"], "a deterministic defence has nothing to average"


def test_without_a_budget_a_deterministic_defence_keeps_its_clean_numbers_and_its_health() -> None:
    _, card = _run(toy_evaluator(Identity(), PGD(10), ThreatModel("linf", 0)))
    assert card["status"] == "ok"
    for verdict in card["verdicts"].values():
        assert verdict["clean"] == verdict["robust"]
        assert verdict["clean"]["value"] == 1.0


class Detaching(Purifier):
    """Sabotage: as good as no defence, but the gradient is lost on the way (rounding, a hard mask, a bug)."""

    random = False

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        return Purified(x.detach().clone()[None])


class Misleading(Purifier):
    """Sabotage: the gradient points the wrong way."""

    random = False

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        return Purified((2 * x.detach() - x)[None])


class Rounding(Purifier):
    """Sabotage: the exact gradient is zero, the straight-through one is not; and a little noise on top."""

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        return Purified((torch.round(x * 16) / 16 + 0.02 * noise.normal(x.shape[1:], dtype=x.dtype))[None])


class Constant(Purifier):
    """Sabotage of another kind: the verdict does not look at the image at all, so no budget breaks it."""

    def __init__(self, good: Tensor) -> None:
        super().__init__()
        self.good = good

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        row = (noise.index // 3) % len(self.good)
        return Purified((self.good[row] + 1e-3 * x + 1e-4 * noise.normal(x.shape[1:], dtype=x.dtype))[None])


SABOTAGE = [
    pytest.param(Detaching, PGD(10), 8, "no gradient moved any image", id="detaching"),
    pytest.param(Detaching, PGD(10), 0, "no gradient moved any image", id="detaching-unaudited"),
    pytest.param(Detaching, PGD(10, random_start=False), 0, "no gradient", id="detaching-no-random-start"),
    pytest.param(
        Detaching,
        PGD(10),
        8,
        "accuracy is left at a budget that allows every image",
        id="detaching-large-eps",
    ),
    pytest.param(Misleading, PGD(10), 0, "the loss does not rise with the attack's steps", id="misleading"),
    pytest.param(Rounding, PGD(10), 0, "no gradient moved any image", id="rounding"),
    pytest.param(Rounding, PGD(10, random_start=False), 24, "bpda beats the attack", id="rounding-bpda"),
]


@pytest.mark.parametrize(("purifier", "attack", "audit_images", "doubt"), SABOTAGE)
def test_sabotage_is_suspect(purifier: type[Purifier], attack: PGD, audit_images: int, doubt: str) -> None:
    evaluator = toy_evaluator(purifier(), attack, audit_images=audit_images)
    records, card = _run_without_description(evaluator)
    assert card["status"].startswith("suspect: "), card["audit"]
    assert doubt in card["status"]
    assert card["n"] == len(records), "a suspect number is still shown"


def _run_without_description(evaluator: Evaluator) -> tuple[list[Record], dict[str, Any]]:
    chosen = right_cases(24)
    records = evaluator.evaluate(chosen, torch.arange(24) < evaluator.protocol.audit_images)
    return records, make_card(records, _fingerprint())


def test_a_defence_that_ignores_its_input_is_suspect() -> None:
    chosen = right_cases(24)
    _, card = _run_without_description(toy_evaluator(Constant(chosen.images), PGD(5, selection_draws=2)))
    assert "100 % accuracy is left at a budget that allows every image" in card["status"]


def test_an_attack_weaker_than_chance_is_suspect() -> None:
    class Idle(RandomDirections):
        """Returns images that nobody tried to make wrong."""

        def run(self, engine, cases, threat, noise):
            return cases.images.clone(), {}

    evaluator = toy_evaluator(NoisyPurifier(0.02), Idle(), ThreatModel("linf", 0.3), audit_images=24)
    _, card = _run_without_description(evaluator)
    assert "beats the attack" in card["status"]


# Synthetic records ------------------------------------------------------------


def _fingerprint(**changes: Any) -> dict[str, Any]:
    protocol = {"verdict_draws": DRAWS}
    decides = {
        "protocol": protocol,
        "attack": {"class": "PGD", "target": "expected"},
        "threat": {},
        "defence": {},
        "seed": 0,
        "rows": 16,
    }
    return {"sha256": "0" * 64, "decides": {**decides, **changes}}


def _synthetic(index: int, failed: bool = False) -> Record:
    logits = torch.zeros(DRAWS, 3)
    logits[:, 0] = 1.0
    statistics = {"zero_gradients": 0.0, "loss_first": 1.0, "loss_last": 2.0, "predicted_gain": 3.0}
    image = torch.zeros(1, 4, 4)
    return Record(index, 0, image, 0.1, failed, logits, logits, {} if failed else statistics)


def test_failed_samples_count_as_broken_and_make_the_card_suspect() -> None:
    records = [_synthetic(i, failed=i in (4, 7)) for i in range(20)]
    card = make_card(records, _fingerprint())
    assert card["status"].startswith("suspect: 2 samples met NaN or Inf and count as broken (first: 4)")
    assert card["audit"]["failed_samples"] == [4, 7]
    for verdict in card["verdicts"].values():
        assert verdict["clean"]["value"] == 1.0
        assert verdict["robust"]["value"] == pytest.approx(0.9)


def test_nan_in_a_victim_ends_as_failed_records_and_a_suspect_card() -> None:
    class Sometimes(Purifier):
        def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
            scale = torch.where(noise.index == 6, torch.nan, 1.0).view(-1, 1, 1, 1)
            return Purified(((x + 0.02 * noise.normal(x.shape[1:], dtype=x.dtype)) * scale)[None])

    records, card = _run_without_description(toy_evaluator(Sometimes(), PGD(5, selection_draws=2)))
    assert [record.index for record in records if record.failed] == [6]
    assert "1 samples met NaN or Inf" in card["status"]
    assert json.loads(json.dumps(card, allow_nan=False))["audit"]["failed_samples"] == [6]
    for record in records:
        Record.from_json(record.to_json())


def test_a_blind_gradient_is_suspect() -> None:
    """It exists and is followed, but the loss does not do what it promises."""
    records = [_synthetic(i) for i in range(20)]
    for record in records:
        record.statistics["predicted_gain"] = 1000.0
    assert "less than 1 % of what its gradient predicts" in make_card(records, _fingerprint())["status"]


def test_zero_gradients_are_a_share_of_the_draws_that_were_still_right() -> None:
    """Images that another member broke, or that were wrong as they came, have none, and dilute nothing."""
    seen = {"zero_gradients": 1.0, "right_draws": 20.0}
    unseen = {"zero_gradients": 0.0, "right_draws": 0.0}
    assert zero_share([seen, *[unseen] * 9]) == 1.0
    assert zero_share([seen, {"zero_gradients": 0.0, "right_draws": 60.0}]) == 0.25
    assert zero_share([unseen]) == 0.0
    assert zero_share([{"zero_gradients": 1.0}, {"zero_gradients": 0.0}, {"score": 3.0}]) == 0.5
    assert zero_share([{"1 zero_gradients": 0.5, "1 right_draws": 2.0}], "1 ") == 0.5


def test_a_few_zero_gradients_are_suspect() -> None:
    records = [_synthetic(i) for i in range(20)]
    records[0].statistics["zero_gradients"] = 0.5
    assert "2.5 % of the gradients are zero everywhere" in make_card(records, _fingerprint())["status"]


def test_no_record_makes_no_card() -> None:
    with pytest.raises(ValueError, match=r"no record yet.*run `cli\.py test` first"):
        make_card([], _fingerprint())


def test_failed_samples_are_broken_under_every_rule() -> None:
    records = [_synthetic(0), _synthetic(1, failed=True)]
    for rule in all_rules(DRAWS):
        assert verdicts(records, rule) == ([1.0, 1.0], [1.0, 0.0])


def test_costs_of_all_processes_and_starts_add_up() -> None:
    costs: Iterable[dict[str, Any]] = [
        {"images": 10, "seconds": 5.0, "calls": {"a": 100}, "peak_memory": 2**20},
        {"images": 30, "seconds": 5.0, "calls": {"a": 60, "b": 40}, "peak_memory": 3 * 2**20},
    ]
    cost = make_card([_synthetic(0)], _fingerprint(), costs)["cost"]
    assert cost["network_calls_per_image"] == 5.0
    assert cost["calls_per_image"] == {"a": 4.0, "b": 1.0}
    assert cost["seconds_per_image"] == 0.25
    assert cost["peak_memory_mib"] == 3.0
    assert cost["defence"] is None, "lines of versions that did not measure it"


def test_network_calls_are_counted_in_rows() -> None:
    evaluator = toy_evaluator(NoisyPurifier(), PGD(3, eot=2, selection_draws=4, finalists=2), audit_images=0)
    evaluator.evaluate(right_cases(16), torch.zeros(16, dtype=torch.bool))
    calls = evaluator.cost.calls
    verdict_rows, gradient_rows, selection_rows = 2 * DRAWS * 16, 3 * 2 * 16, (2 + 1) * 4 * 16
    assert calls == {
        "classifier_forward": verdict_rows + gradient_rows + selection_rows,
        "classifier_backward": gradient_rows,
    }
    assert evaluator.cost.images == 16
    assert evaluator.cost.peak_memory > 0


def test_a_run_folder_gets_its_card_whole(tmp_path: Path) -> None:
    fingerprint = Fingerprint(_fingerprint()["decides"])
    folder = RecordFolder(tmp_path / "records", fingerprint)
    folder.append([_synthetic(i) for i in (3, 1, 2)])
    folder.close()
    (tmp_path / "cost").mkdir()
    line = json.dumps({"images": 3, "seconds": 1.5, "calls": {"classifier": 30}, "peak_memory": 1})
    (tmp_path / "cost" / "rank0.json").write_text(line)
    (tmp_path / "provenance").mkdir()
    for start, device in enumerate(("a GPU", "a CPU")):
        facts = {"python": "3", "device": device}
        (tmp_path / "provenance" / f"test-{start}.json").write_text(json.dumps(facts))
    (tmp_path / "provenance" / "fit-9.json").write_text(json.dumps({"python": "2"}))
    card = write_card(tmp_path)
    assert json.loads((tmp_path / "card.json").read_text()) == card
    assert card["n"] == 3
    assert card["fingerprint"] == fingerprint.sha256
    assert card["cost"]["network_calls_per_image"] == 10.0
    assert card["provenance"]["python"] == "3"
    assert [start["device"] for start in card["provenance"]["starts"]] == ["a GPU", "a CPU"]
    assert {path.name for path in tmp_path.iterdir()} == {"records", "cost", "provenance", "card.json"}
    assert write_card(tmp_path) == card, "a card made again from the same records is the same"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"verdict_draws": 0}, r"protocol\.verdict_draws is 0"),
        ({"audit_images": -1}, r"protocol\.audit_images is -1"),
    ],
)
def test_impossible_protocols_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Protocol(**options)
