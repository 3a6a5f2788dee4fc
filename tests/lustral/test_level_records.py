"""Noise levels and scores of verdict draws: from the trace to the record and the card, at no cost."""

import json
from typing import ClassVar

import numpy as np
import pytest
import torch

from lustral.attacks import PGD, Engine
from lustral.diffusion import EulerMaruyama, VPSchedule
from lustral.diffusion.perturbation import EPS
from lustral.evaluation import Evaluator, Fingerprint, Record, RecordFolder, make_card, read_records
from lustral.evaluation.levels import level_means, level_statistics
from lustral.noise import NoiseStream
from lustral.purifiers import GNSP, SSNI, DiffPure, FixedLevels, LevelRule, Purifier, SigmoidLevels
from tests.contracts import NoisyPurifier, SmoothDenoiser, cases, images, stored_scores, stream, toy_evaluator

DRAWS, ROWS = 8, 4
SCORE = EPS(2, 10.0)


def _ssni(rule: LevelRule, two_rounds: bool = False) -> SSNI:
    denoiser = SmoothDenoiser(VPSchedule()).float()
    purifier = GNSP(denoiser, [(60, 3), (120, 2)]) if two_rounds else DiffPure(denoiser, EulerMaruyama(), 100, 4)
    return SSNI(purifier, rule, stored_scores(denoiser, SCORE, [280.0, 310.0, 400.0]), SCORE)


def _records(purifier: Purifier, batch: int = 5) -> tuple[Evaluator, list[Record]]:
    evaluator = toy_evaluator(purifier, PGD(2, eot=2, selection_draws=2))
    return evaluator, evaluator.evaluate(cases(batch), torch.zeros(batch, dtype=torch.bool))


def test_statistics_are_means_and_deviations_over_the_draws_of_the_first_round() -> None:
    levels = torch.tensor([[[10.0, 1.0], [40.0, 2.0]], [[20.0, 3.0], [40.0, 4.0]]])  # draws, images, rounds
    score = torch.tensor([[1.0, 2.0], [3.0, 8.0]], dtype=torch.float64)
    found = level_statistics({"levels": levels, "score": score}, {"levels": levels + 5})
    assert {name: values.tolist() for name, values in found.items()} == {
        "level_clean": [15.0, 40.0],
        "level_clean_spread": [5.0, 0.0],
        "score_clean": [2.0, 5.0],
        "score_clean_spread": [1.0, 3.0],
        "level_adversarial": [20.0, 45.0],
        "level_adversarial_spread": [5.0, 0.0],
    }
    assert level_statistics({}, {}) == {}


@pytest.mark.parametrize("two_rounds", [False, True])
def test_a_record_has_what_the_verdict_draws_had(two_rounds: bool) -> None:
    """Against one call of the purifier with the verdict's own noise, draw by draw."""
    ssni = _ssni(SigmoidLevels(5.0, 40.0), two_rounds)
    evaluator, records = _records(ssni)
    chosen, draws = cases(5), evaluator.protocol.verdict_draws
    attacked = torch.stack([record.image for record in records])
    for kind, x in (("clean", chosen.images), ("adversarial", attacked)):
        noise = NoiseStream(evaluator.seed, chosen.index).fork("verdict", kind)
        wants = ["levels", "score"]
        rows = [torch.arange(5) + 5 * d for d in range(draws)]
        traces = [ssni(x, noise.repeat(draws).select(row), wants=wants).trace for row in rows]
        level = np.array([trace["levels"][:, 0].numpy() for trace in traces])
        score = np.array([trace["score"].numpy() for trace in traces])
        assert len(np.unique(level)) > 5, "the test needs levels that differ"
        for name, values in (("level", level), ("score", score)):
            found = np.array([[r.statistics[f"{name}_{kind}{end}"] for end in ("", "_spread")] for r in records])
            np.testing.assert_allclose(found[:, 0], values.mean(0), rtol=1e-5)
            np.testing.assert_allclose(found[:, 1], values.std(0), rtol=1e-3, atol=1e-5)


def test_a_purifier_without_them_leaves_none() -> None:
    _, records = _records(NoisyPurifier(0.05))
    assert not [name for record in records for name in record.statistics if "level" in name or "score" in name]
    assert level_means(records) == {}
    _, fixed = _records(_ssni(FixedLevels(0.5)))
    assert {record.statistics["level_adversarial"] for record in fixed} == {50.0}
    assert "score_clean" not in fixed[0].statistics
    expected = {"value": 50.0, "low": 50.0, "high": 50.0}
    assert level_means(fixed) == {"levels": {"n": 5, "level": {"clean": expected, "adversarial": expected}}}


def test_looking_costs_no_network_call_and_changes_no_bit() -> None:
    ssni, calls = _ssni(SigmoidLevels(5.0, 40.0)), []
    ssni.purifier.denoiser.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    engine = Engine(toy_evaluator(ssni, PGD(1)).defence, ROWS)
    logits = engine.logits(images(3), stream(3), DRAWS)
    without = list(calls)
    calls.clear()
    again, trace = engine.judge(images(3), stream(3), DRAWS, ("levels", "score"))
    assert calls == without
    assert torch.equal(again, logits)
    shapes = {name: tuple(values.shape) for name, values in trace.items()}
    assert shapes == {"levels": (DRAWS, 3, 1), "score": (DRAWS, 3)}


def test_padding_and_chunks_leave_no_trace() -> None:
    """Five rows in calls of four: the padding of the last call is no image's."""

    class Brightness(NoisyPurifier):
        offers: ClassVar = {"levels": "(B, 1)"}

        def run(self, x, context, noise, wants):
            purified = super().run(x, context, noise, wants)
            return type(purified)(purified.images, {"levels": x.flatten(1).mean(1)[:, None]})

    engine, x = Engine(toy_evaluator(Brightness(0.1), PGD(1)).defence, ROWS), images(5)
    _, trace = engine.judge(x, stream(5), 3, ("levels",))
    torch.testing.assert_close(trace["levels"], x.flatten(1).mean(1)[None, :, None].expand(3, 5, 1))


def test_records_with_and_without_levels_make_a_card(tmp_path) -> None:
    """A folder in which an older version wrote the first records, and this one goes on."""
    evaluator, records = _records(_ssni(SigmoidLevels(5.0, 40.0)))
    first = records[0].statistics.items()
    old = {name: value for name, value in first if "level" not in name and "score" not in name}
    folder = RecordFolder(tmp_path / "records", fingerprint := Fingerprint(evaluator.decides()))
    folder.append([Record(**{**vars(records[0]), "statistics": old}), *records[1:]])
    folder.close()
    read = read_records(tmp_path / "records")
    assert [read[r.key].statistics for r in records[1:]] == [r.statistics for r in records[1:]]
    content = {"sha256": fingerprint.sha256, "decides": json.loads(json.dumps(fingerprint.decides))}
    card = make_card(list(read.values()), content)
    assert card["n"] == 5
    section = card["levels"]
    assert section["n"] == 4
    for name in ("level", "score"):
        for kind in ("clean", "adversarial"):
            expected = np.mean([record.statistics[f"{name}_{kind}"] for record in records[1:]])
            rate = section[name][kind]
            assert rate["value"] == pytest.approx(expected)
            assert rate["low"] < rate["value"] < rate["high"]
    assert json.loads(json.dumps(card, allow_nan=False)) == card
