"""Null controls: an attack that cannot do anything must return the clean number, under every rule."""

import pytest
import torch
from scipy import stats

from lustral.attacks import (
    APGD,
    PGD,
    Attack,
    Cases,
    Ensemble,
    RandomDirections,
)
from lustral.evaluation import Defence, Evaluator, Protocol, Record, Worst, all_rules
from lustral.threat import ThreatModel
from tests.contracts import (
    NoisyPurifier,
    ToyClassifier,
    images,
)

LINF = ThreatModel("linf", "16/255")


DRAWS = 12


def _joint_p_value(records: list[Record], optional_stopping: bool = False) -> float:
    """One test over all rules that clean and robust verdicts have one mean, each rule on draws of its own.

    Under the null hypothesis an image's two verdicts are exchangeable, so each rule gives a standard normal,
    and disjoint draws make the rules' sum of squares chi-squared.
    """
    labels = torch.tensor([record.label for record in records])
    clean = torch.stack([record.clean_logits for record in records], 1)
    robust = torch.stack([record.adversarial_logits for record in records], 1)
    total, degrees = 0.0, 0
    for k, rule in enumerate(all_rules(DRAWS)):
        block = slice(k * DRAWS, (k + 1) * DRAWS)
        judge = Worst(DRAWS) if optional_stopping else rule
        difference = judge(robust[block], labels) - rule(clean[block], labels)
        if difference.abs().sum() > 0:
            total += float(difference.sum() ** 2 / (difference**2).sum())
            degrees += 1
    assert degrees >= 3, "too few rules see any error: the test could not fail"
    return float(stats.chi2.sf(total, degrees))


def _null_records(attack: Attack, threat: ThreatModel) -> list[Record]:
    """600 images that a random defence gets right in most draws, and wrong in some 4 % of them."""
    classifier, n = ToyClassifier(), 600
    x = images(3 * n, seed=8)
    logits = classifier(x).detach()
    best, second = logits.topk(2).values.T
    keep = (best - second).argsort()[-n:]
    chosen = Cases(x[keep], logits.argmax(1)[keep], keep)
    defence = Defence(classifier, NoisyPurifier(0.1))
    evaluator = Evaluator(defence, attack, threat, Protocol(5 * DRAWS, audit_images=0), seed=3, rows=256)
    return evaluator.evaluate(chosen, torch.zeros(n, dtype=torch.bool))


NULL_CONTROLS: dict[str, tuple[Attack, ThreatModel]] = {
    "no_budget": (PGD(3, eot=2), ThreatModel("linf", 0)),
    "no_budget_random_directions": (RandomDirections(3), ThreatModel("linf", 0)),
    "negligible_walk": (RandomDirections(10), ThreatModel("linf", 1e-6)),
    "no_budget_ensemble": (Ensemble([PGD(3, eot=2), RandomDirections(3)], 4), ThreatModel("linf", 0)),
    "negligible_ensemble": (
        Ensemble([PGD(5, eot=2, selection_draws=4), RandomDirections(5, 4), PGD(5, selection_draws=4)], 8),
        ThreatModel("linf", 1e-6),
    ),
    "negligible_surrogate": (
        PGD(10, eot=2, selection_draws=8, surrogate=NoisyPurifier(0.3)),
        ThreatModel("linf", 1e-6),
    ),
    "negligible_pgd": (PGD(10, eot=2, selection_draws=8), ThreatModel("linf", 1e-6)),
    "negligible_apgd": (APGD(10, eot=2, selection_draws=8), ThreatModel("linf", 1e-6)),
}


@pytest.mark.parametrize("name", NULL_CONTROLS)
def test_null_controls_return_the_clean_number(name: str) -> None:
    records = _null_records(*NULL_CONTROLS[name])
    labels = torch.tensor([record.label for record in records])
    wrong = torch.stack([record.clean_logits for record in records], 1).argmax(-1) != labels
    assert 0.005 < float(wrong.float().mean()) < 0.1, "a defence without errors would pass any protocol"
    assert _joint_p_value(records) > 0.001
    if name == "no_budget":
        assert _joint_p_value(records, optional_stopping=True) < 1e-6, "the control must catch repeated looks"


def test_a_real_attack_does_not_pass_for_a_null_control() -> None:
    assert _joint_p_value(_null_records(PGD(5, selection_draws=2), LINF)) < 1e-6
