"""Ensembles: the worst member image by image, chosen on selection draws and judged once."""

import json

import pytest
import torch

from lustral.attacks import PGD, Attack, Cases, Engine, Ensemble, MeanLogitMargin, RandomDirections
from lustral.evaluation import Defence, Fingerprint, Record, make_card
from lustral.noise import NoiseStream
from lustral.purifiers import Identity, Purifier
from lustral.threat import ThreatModel
from tests.contracts import NoisyPurifier, ToyClassifier, right_cases, stream, toy_evaluator

LINF = ThreatModel("linf", "12/255")
DRAWS = 8


def _members() -> list[Attack]:
    return [
        PGD(5, eot=2, selection_draws=4),
        RandomDirections(6, 4),
        PGD(5, eot=2, gradient="detached", selection_draws=4),
        PGD(2, eot=1, objective=MeanLogitMargin(), selection_draws=4),
    ]


def _engine() -> Engine:
    return Engine(Defence(ToyClassifier(), NoisyPurifier(0.1)), 16)


def test_the_winner_is_the_members_worst_on_the_selection_draws() -> None:
    """Against a straight evaluation: every member alone, from its own stream, scored on the same draws."""
    chosen, engine, noise = right_cases(30), _engine(), stream(30)
    result = Ensemble(_members(), DRAWS)(engine, chosen, LINF, noise)
    own = noise.fork("attack", "Ensemble")
    found, wrong, loss = [], [], []
    for number, member in enumerate(_members()):
        images = member(engine, chosen, LINF, own.fork(str(number))).images
        logits = engine.logits(images, own.fork("selection"), DRAWS)
        found.append(images)
        wrong.append((logits.argmax(-1) != chosen.labels).double().mean(0))
        loss.append(torch.logsumexp(logits, -1).mean(0) - logits.mean(0)[torch.arange(30), chosen.labels])
    best = torch.stack(wrong).amax(0)
    for b in range(30):
        expected = max(range(4), key=lambda k: (float(wrong[k][b]), float(loss[k][b])))
        assert int(result.statistics["winner"][b]) == expected
        assert torch.equal(result.images[b], found[expected][b])
        assert float(wrong[expected][b]) == float(best[b]), "never weaker than any member on these draws"
    assert len(result.statistics["winner"].unique()) >= 3, "the test needs several winners"
    assert float(best.mean()) > max(float(each.mean()) for each in wrong)


def test_members_of_one_class_draw_from_their_own_streams_and_a_new_one_disturbs_nobody() -> None:
    chosen, engine = right_cases(20), _engine()
    one = Ensemble([PGD(3, selection_draws=4)], DRAWS)(engine, chosen, LINF, stream(20))
    two = Ensemble([PGD(3, selection_draws=4)] * 2, DRAWS)(engine, chosen, LINF, stream(20))
    second = two.statistics["winner"] == 1
    assert 0 < int(second.sum()) < 20
    assert torch.equal(two.images[~second], one.images[~second])
    for b in second.nonzero().flatten().tolist():
        assert not torch.equal(two.images[b], one.images[b])


def test_what_one_member_breaks_for_good_is_not_handed_to_the_next() -> None:
    """A deterministic defence: the same images are broken as if every member had seen all, at fewer queries."""
    chosen, noise, seen = right_cases(30), stream(30), []

    class Telling(PGD):
        def run(self, engine, cases, threat, noise):
            seen.append(cases.index.tolist())
            return super().run(engine, cases, threat, noise)

    engine = Engine(Defence(ToyClassifier(), Identity()), 16)
    members = [RandomDirections(30, 1), Telling(10), Telling(20)]
    result = Ensemble(members, 1)(engine, chosen, LINF, noise)
    own = noise.fork("attack", "Ensemble")
    alone = members[0](engine, chosen, LINF, own.fork("0")).images
    left = engine.logits(alone, noise)[0].argmax(-1) == chosen.labels
    assert 0 < int(left.sum()) < 30
    assert seen[0] == chosen.index[left].tolist()
    assert set(seen[1]) < set(seen[0])
    assert torch.equal(result.images[~left], alone[~left])
    assert [int(result.statistics[f"{k} asked"].sum()) for k in range(3)] == [30, len(seen[0]), len(seen[1])]
    assert (result.statistics["winner"][~left] == 0).all()
    wrong = engine.logits(result.images, noise)[0].argmax(-1) != chosen.labels
    assert int((~wrong).sum()) <= len(seen[1])
    for b in (0, 1):  # what a record says does not depend on whether anyone in its batch was left
        one = Ensemble(members, 1)(engine, chosen.select(torch.tensor([b])), LINF, noise.select(torch.tensor([b])))
        assert one.statistics.keys() == result.statistics.keys()
        for key, values in one.statistics.items():
            assert values[0] == pytest.approx(float(result.statistics[key][b]), rel=1e-4, abs=1e-6), key
    nobody = Ensemble([PGD(10), RandomDirections(2, 1)], 1)(engine, chosen, ThreatModel("linf", 1.0), noise)
    assert not nobody.failed.any()
    assert nobody.statistics["1 asked"].sum() == 0


def test_statistics_are_the_best_differentiating_members() -> None:
    """A member without gradients, or with zero ones, must not hide behind another; the best one's are asked about."""
    chosen = right_cases(30)
    result = Ensemble(_members(), DRAWS)(_engine(), chosen, LINF, stream(30))
    found = result.statistics
    assert (found["0 zero_gradients"] == 0).all()
    assert (found["2 zero_gradients"] == 1).all()
    assert "1 score" in found
    assert "1 zero_gradients" not in found
    for b in range(30):
        winner = int(found["winner"][b])
        if winner != 1:
            for name in ("zero_gradients", "loss_first", "loss_last", "predicted_gain"):
                assert found[name][b] == found[f"{winner} {name}"][b]
        else:
            assert float(found["zero_gradients"][b]) in (0.0, 1.0)
    alone = Ensemble([RandomDirections(2, 2)], 2)(_engine(), chosen, LINF, stream(30)).statistics
    assert set(alone) == {"winner", "0 score", "0 asked"}


def test_the_first_members_rule_is_aimed_at() -> None:
    first = Ensemble([PGD(2, objective=MeanLogitMargin()), PGD(2)])
    assert first.target == "mean_logit"
    assert Ensemble([first, PGD(2)]).target == "mean_logit"
    logits = torch.tensor([[[0.0, 5.0]], [[0.1, 0.0]], [[0.1, 0.0]]])
    y = torch.tensor([0])
    assert first.score(logits, y)[0].tolist() == [1.0], "two of three draws are right, the mean logit is not"
    assert Ensemble([PGD(2)]).score(logits, y)[0].tolist() == [pytest.approx(1 / 3)]


@pytest.mark.parametrize("options", [{"attacks": []}, {"attacks": [PGD(2)], "selection_draws": 0}])
def test_an_empty_ensemble_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="an ensemble needs at least 1 of each"):
        Ensemble(**options)


# The card ------------------------------------------------------------


def _run(attack: Attack, purifier: Purifier, threat: ThreatModel = LINF, batch: int = 16) -> tuple[list[Record], dict]:
    evaluator = toy_evaluator(purifier, attack, threat, audit_images=4)
    chosen: Cases = right_cases(batch)
    records = evaluator.evaluate(chosen, torch.arange(batch) < 4)
    fingerprint = Fingerprint(evaluator.decides())
    content = {"sha256": fingerprint.sha256, "decides": json.loads(json.dumps(fingerprint.decides))}
    return records, make_card(records, content, [vars(evaluator.cost)])


def test_the_card_tells_which_member_won_how_often() -> None:
    records, card = _run(Ensemble(_members(), DRAWS), NoisyPurifier(0.1), ThreatModel("linf", "24/255"))
    rows = card["audit"]["members"]
    assert [row["attack"] for row in rows] == [
        "PGD exact CrossEntropy",
        "RandomDirections",
        "PGD detached CrossEntropy",
        "PGD exact MeanLogitMargin",
    ]
    winners = [int(record.statistics["winner"]) for record in records]
    assert [row["wins"] for row in rows] == [winners.count(k) for k in range(4)]
    assert sum(row["wins"] for row in rows) == 16
    assert [row.get("zero_gradient_share") for row in rows] == [0.0, None, 1.0, 0.0]
    accuracy = card["audit"]["expected_accuracy"]
    assert {"random_directions", "bpda", "double_eot", "double_eps", "large_eps", "known_noise"} <= accuracy.keys()
    assert accuracy["large_eps"] <= 0.05
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    assert "members" not in _run(PGD(2), NoisyPurifier(0.1))[1]["audit"]


def test_an_ensemble_without_budget_keeps_the_clean_numbers() -> None:
    records, card = _run(Ensemble(_members(), DRAWS), Identity(), ThreatModel("linf", 0))
    for verdict in card["verdicts"].values():
        assert verdict["clean"] == verdict["robust"]
    assert all(record.distance == 0 for record in records)


def test_the_audit_changes_every_member() -> None:
    """Twice the steps, the EOT draws and the budget, of the whole ensemble: seen by the calls that it takes."""
    asked: list[tuple[int, int, float]] = []

    class Telling(PGD):
        def run(self, engine, cases, threat, noise):
            asked.append((self.num_steps, self.eot, self.step_length(threat)))
            return super().run(engine, cases, threat, noise)

    members = [Telling(2, eot=3, step_size=0.1, selection_draws=2), Ensemble([Telling(2, step_size=0.125)], 2)]
    _run(Ensemble(members, 2), NoisyPurifier(0.1), ThreatModel("linf", 0.125))
    for eot, step in ((3, 0.1), (1, 0.125)):
        own, steps, draws = (2, eot, step), (4, eot, step), (2, 2 * eot, step)
        larger, largest = (2, eot, max(2 * step, 0.25)), (2, eot, max(8 * step, 1.0))
        assert {own, steps, draws, larger, largest} <= set(asked)


def test_a_deterministic_defence_is_broken_where_any_member_breaks_it() -> None:
    chosen, engine = right_cases(24), Engine(Defence(ToyClassifier(), Identity()), 16)
    members: list[Attack] = [RandomDirections(1, 1) for _ in range(3)]

    def broken(attack: Attack, noise: NoiseStream) -> torch.Tensor:
        found = attack(engine, chosen, LINF, noise).images
        return engine.logits(found, stream(24))[0].argmax(-1) != chosen.labels

    own = stream(24).fork("attack", "Ensemble")
    single = torch.stack([broken(member, own.fork(str(k))) for k, member in enumerate(members)])
    assert torch.equal(broken(Ensemble(members, 1), stream(24)), single.any(0))
    assert single.float().mean(1).amax() < single.any(0).float().mean() < 1, "no member may break all of them alone"
