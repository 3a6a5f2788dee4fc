"""The audit's table of probes, the images it looks at, and how their results are compared."""

from typing import Any

import numpy as np
import pytest
import torch

from lustral.attacks import APGD, PGD, Attack, CrossEntropy, Deviation, Ensemble, RandomDirections, Square
from lustral.evaluation import Record, probes
from lustral.evaluation.audit import audited_indices
from lustral.evaluation.doubts import _word, audited_records, rightness
from lustral.evaluation.probes import make_plan
from lustral.purifiers import Identity, Variant
from lustral.threat import ThreatModel
from tests.contracts import NoisyPurifier

THREAT = ThreatModel("linf", "16/255")


def _plan(attack: Attack, random: bool, **options: Any) -> probes.Plan:
    purifier = NoisyPurifier() if random else Identity()
    given = {"threat": THREAT, "known_noise": True, **options}
    return make_plan(attack, purifier, random, 10, given["threat"], (1, 4, 4), given["known_noise"])


def test_what_is_not_asked_is_told_with_its_reason() -> None:
    attack = probes.house_attack(False, 10)
    assert isinstance(attack, Ensemble)
    plan = _plan(attack, False)
    assert plan.skipped == {
        "house": "it is the run's attack",
        "bpda": "there is no purifier",
        "double_eot": "the defence draws no noise",
        "known_noise": "the defence draws no noise",
    }
    assert [probe.name for probe in plan.probes] == [
        *("random_directions", "square", "double_steps", "double_eps", "large_eps")
    ]
    nothing = _plan(PGD(3), True, threat=ThreatModel("linf", 0))
    assert set(nothing.skipped.values()) == {"the budget is 0"}
    assert [probe.name for probe in nothing.probes] == ["random_directions", "known_noise"]
    assert _plan(PGD(3), True, known_noise=False).skipped == {"known_noise": "protocol.known_noise is false"}
    assert _plan(RandomDirections(), True).skipped["double_steps"] == "the attack takes no steps"
    assert "house" in _plan(Ensemble([PGD(3), *attack.attacks]), False).skipped, "it is a member"

    class Milder(Ensemble):
        """May make anything of its members' images."""

    assert "house" not in _plan(Milder(attack.attacks), False).skipped


@pytest.mark.parametrize(
    ("attack", "reach"),
    [
        (PGD(20), 2.5),
        (PGD(2, step_size=0.01), 0.02 * 255 / 16),
        (Ensemble([PGD(2, step_size=0.01), PGD(20)]), 2.5),
        (Ensemble([PGD(2, step_size=0.01), APGD(3)]), None),
        (Square(), None),
    ],
)
def test_how_far_an_attack_can_walk(attack: Attack, reach: float | None) -> None:
    assert probes.reach(attack, THREAT) == (None if reach is None else pytest.approx(reach))
    assert probes.reach(attack, ThreatModel("linf", 0)) is None


def test_larger_budgets_are_walked_from_the_image_with_steps_that_can_use_them() -> None:
    attack = PGD(10, step_size=0.001, restarts=3)
    larger = ThreatModel("linf", 1.0)
    walked = probes.for_a_larger_budget(attack, 16.0, larger)
    assert isinstance(walked, PGD)
    assert (walked.random_start, walked.restarts, walked.step_length(larger)) == (False, 1, 0.2)
    assert (attack.random_start, attack.restarts) == (True, 3), "the run's own stays as it is"


def test_direct_probes_ask_the_defence_itself_and_keep_all_else() -> None:
    surrogate = NoisyPurifier(0.5)
    attack = PGD(7, eot=3, step_size="2/255", surrogate=surrogate, context="clean", carry=["levels"], spread=4)
    direct = probes.on_the_defence(attack, ["exact"])
    assert isinstance(direct, PGD)
    assert direct.sees_the_defence
    assert (direct.surrogate, direct.context, direct.carry) == (None, "own", [])
    assert (direct.num_steps, direct.eot, direct.step_size, direct.spread) == (7, 3, "2/255", 4)
    assert (attack.surrogate, attack.context, attack.carry) == (surrogate, "clean", ["levels"])
    plain, blind = PGD(7), PGD(7, surrogate=surrogate)
    assert probes.on_the_defence(plain, ["exact"]) is plain
    assert probes.on_the_defence(blind, ["bpda"]) is blind, "its gradient is no gradient of the defence"
    steered = PGD(7, objective=Deviation(CrossEntropy(), 1.0), surrogate=surrogate)
    assert probes.on_the_defence(steered, ["exact"]) is steered, "perhaps the variant alone differentiates it"
    chance = RandomDirections()
    assert probes.on_the_defence(chance, ["exact"]) is chance


def test_changed_attacks_share_their_surrogates() -> None:
    """An attack made anew for the audit differentiates the very same purifier, whose exchanged defence is made once."""
    for surrogate in (NoisyPurifier(0.5), Variant({"std": 0.5})):
        attack = PGD(7, surrogate=surrogate)
        assert probes.twice_the_steps(attack).surrogate is surrogate  # type: ignore[attr-defined]
        assert probes.twice_the_draws(attack).eot == 2  # type: ignore[attr-defined]


def test_a_purifier_without_an_exact_gradient_is_not_asked_for_it() -> None:
    class Blind(NoisyPurifier):
        gradient_modes = ("bpda", "detached")

    plan = make_plan(PGD(3, gradient="bpda"), Blind(), True, 10, THREAT, (1, 4, 4), True)
    assert plan.skipped == {"house": "Blind offers no exact gradient"}
    assert "bpda" in [probe.name for probe in plan.probes]


def test_audited_images_come_from_everywhere_and_a_part_keeps_those_of_the_whole() -> None:
    whole = list(range(1000, 3000, 2))
    chosen = audited_indices(whole, 16, seed=0)
    assert len(chosen) == 16
    assert chosen[0] < 1400
    assert chosen[-1] > 2600
    assert audited_indices(whole[::-1], 16, 0) == chosen, "whatever the order, so whatever the process"
    assert audited_indices(whole, 16, seed=1) != chosen
    part = whole[:300]
    assert {index for index in chosen if index in part} <= set(audited_indices(part, 16, 0))
    assert audited_indices(part, 0, 0) == audited_indices([], 5, 0) == []


def test_a_run_that_was_extended_counts_the_images_of_the_longer_run() -> None:
    """The short run audited some that the long one does not need."""
    short, whole = list(range(40)), list(range(200))
    audited = {*audited_indices(short, 8, 0), *audited_indices(whole, 8, 0)}
    logits = torch.zeros(2, 3)
    records = [
        Record(i, 0, torch.zeros(1, 1, 1), 0.0, False, logits, logits, {}, {"bpda": 0.0} if i in audited else {})
        for i in whole
    ]
    assert len(audited) > 8
    assert [record.index for record in audited_records(records, 8, 0)] == audited_indices(whole, 8, 0)


def test_an_image_of_a_deterministic_defence_is_an_example() -> None:
    """One of few that only a probe breaks is undecided, two are not chance; of many, one is nothing."""

    def word(broken: int, n: int) -> str:
        return _word(np.array([0.4] * broken + [0.0] * (n - broken)), broken / n, broken, True)

    assert [word(1, 16), word(2, 16), word(1, 64), word(0, 16)] == [
        "undecided",
        "stronger",
        "no stronger",
        "no stronger",
    ]
    assert _word(np.array([0.4] + [0.0] * 15), 0.1, 1, False) == "no stronger", "chance, where there is noise"


def test_a_random_defence_that_a_probe_probably_harms_more_is_undecided() -> None:
    """An attack of one draw on a strongly random defence was `ok`: three probes were stronger, none at 1 %."""
    pattern = np.array([1.0, -1.0] * 8)
    assert _word(0.06 + 0.11 * pattern, 0.06, 0, False) == "undecided"
    assert _word(0.06 + 0.05 * pattern, 0.06, 0, False) == "stronger"
    assert _word(0.06 + 0.30 * pattern, 0.06, 0, False) == "no stronger"
    assert _word(0.02 + 0.03 * pattern, 0.02, 0, False) == "no stronger", "too little to matter"


def test_rightness_sees_how_near_a_draw_is() -> None:
    assert rightness([1.0, 2.0], 1.0) == 0.0
    assert 0 < rightness([-0.1, 1.0], 1.0) < rightness([-1.0, 1.0], 1.0) < rightness([-1e9, 1.0], 1.0) == 0.5
