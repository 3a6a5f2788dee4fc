"""A batch is worked on in portions, so that a killed run loses little, and they cost no call more."""

import pytest
import torch

from lightning_modules import RobustnessEvaluation
from lustral.attacks import PGD, Ensemble
from lustral.evaluation import Dealing, Defence, Protocol, Record
from lustral.evaluation.portions import portions, smallest_portion
from lustral.purifiers import Identity
from lustral.threat import ThreatModel
from tests.contracts import NoisyPurifier, ToyClassifier, right_cases


@pytest.mark.parametrize(
    ("images", "draws", "rows", "expected"),
    [(64, {8, 16}, 64, 8), (128, {20, 16}, 64, 16), (64, {20, 16}, 8, 2), (64, {1}, 64, 64), (7, {2}, 8, 4)],
)
def test_the_smallest_portion_costs_no_call_more(images: int, draws: set[int], rows: int, expected: int) -> None:
    assert smallest_portion(images, draws, rows) == expected


def test_every_image_comes_once() -> None:
    defence, attack = Defence(ToyClassifier(), NoisyPurifier(0.1)), PGD(2, eot=4, selection_draws=4)
    for whole in (attack, Ensemble([attack, attack], selection_draws=8)):
        found = portions(8, defence, whole, verdict_draws=4, rows=8)
        assert [portion.tolist() for portion in found] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_deterministic_defence_gets_the_batch_whole() -> None:
    """Its images leave when they are broken, and the others share the calls."""
    defence = Defence(ToyClassifier(), Identity())
    (found,) = portions(64, defence, PGD(2), verdict_draws=4, rows=8)
    assert found.tolist() == list(range(64))


def test_records_are_handed_on_before_the_batch_ends_and_are_those_of_the_whole() -> None:
    protocol = Protocol(verdict_draws=2, audit_images=0, known_noise=False)
    attack, threat = PGD(2, eot=2, selection_draws=2), ThreatModel("linf", "8/255")
    module = RobustnessEvaluation(ToyClassifier(), NoisyPurifier(0.1), attack, threat, protocol, rows=4)
    cases, taken = right_cases(6), list[list[Record]]()
    module.hand_on(lambda records: taken.append(list(records)))
    module.test_step((cases.images, cases.labels, cases.index), 0)
    assert [len(records) for records in taken] == [2, 2, 2]
    whole = module.evaluator.evaluate(cases, torch.zeros(6, dtype=torch.bool))
    assert [r.to_json() for records in taken for r in records] == [r.to_json() for r in whole]


def test_audited_images_wait_until_they_fill_the_calls_of_the_audit() -> None:
    """A few of them in each batch would pay for the padding of every call of every probe."""
    protocol = Protocol(verdict_draws=2, audit_images=3, known_noise=False)
    attack, threat = PGD(1, eot=2, selection_draws=2), ThreatModel("linf", "8/255")
    module = RobustnessEvaluation(ToyClassifier(), NoisyPurifier(0.1), attack, threat, protocol, rows=4)
    cases, taken = right_cases(8), list[list[Record]]()
    indices = cases.index.tolist()
    module.dealing = Dealing(indices, audit_images=3)
    module.dealing.audited = frozenset((0, indices[i]) for i in (1, 4, 7))
    module.hand_on(lambda records: taken.append(list(records)))
    for rows in torch.arange(8).split(4):
        some = cases.select(rows)
        module.test_step((some.images, some.labels, some.index), 0)
    assert not any(record.audit for records in taken for record in records)
    module.on_test_epoch_end()
    found = {record.index: bool(record.audit) for records in taken for record in records}
    assert [found[index] for index in cases.index.tolist()] == [False, True, False, False, True, False, False, True]
    assert [len(records) for records in taken] == [2, 1, 2, 2, 1]
    module.on_test_epoch_end()
    assert len(taken) == 5, "none is handed on twice"


def test_every_part_of_the_work_is_told() -> None:
    protocol = Protocol(verdict_draws=2, audit_images=0, known_noise=False)
    attack, threat = PGD(2, eot=2, selection_draws=2, finalists=1), ThreatModel("linf", "8/255")
    module = RobustnessEvaluation(ToyClassifier(), NoisyPurifier(0.1), attack, threat, protocol, rows=4)
    told: list[str] = []
    module.observe(lambda task, step, num_steps: told.append(task))
    module.evaluator.evaluate(right_cases(2), torch.zeros(2, dtype=torch.bool))
    assert list(dict.fromkeys(told)) == [
        "peak memory",
        "verdict on clean images",
        "PGD",
        "selection, candidate 1 of 2",
        "selection, candidate 2 of 2",
        "verdict on adversarial images",
    ]
