"""Verdict rules: one contract for all; a new rule joins by one row in `RULES`."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lustral.evaluation import Expected, Majority, MeanLogit, OneShot, VerdictRule, Worst, all_rules
from lustral.evaluation.verdicts import strictly_right, votes
from tests.contracts import generator

DRAWS, BATCH, CLASSES = 7, 200, 4
RULES: dict[str, Callable[[int], VerdictRule]] = {
    "one_shot": lambda draws: OneShot(),
    "majority": Majority,
    "mean_logit": MeanLogit,
    "expected": Expected,
    "worst": Worst,
}


@pytest.fixture(params=RULES)
def rule(request: pytest.FixtureRequest) -> VerdictRule:
    return RULES[request.param](DRAWS)


def _logits(seed: int = 0) -> Tensor:
    """Logits that favour the true class, more or less from image to image, and differ from draw to draw."""
    noise = torch.randn(DRAWS, BATCH, CLASSES, generator=generator(seed))
    return noise + 4 * torch.rand(BATCH, 1, generator=generator(7)) * F.one_hot(_labels(), CLASSES)


def _labels() -> Tensor:
    return torch.randint(0, CLASSES, (BATCH,), generator=generator(9))


def test_the_table_is_complete() -> None:
    assert [rule.name for rule in all_rules(DRAWS)] == list(RULES)
    assert [rule.num_draws for rule in all_rules(DRAWS)] == [1, *[DRAWS] * 4]


def test_verdicts_are_float64_in_the_unit_interval(rule: VerdictRule) -> None:
    verdict = rule(_logits(), _labels())
    assert verdict.shape == (BATCH,)
    assert verdict.dtype == torch.float64
    assert verdict.min() >= 0
    assert verdict.max() <= 1
    assert 0 < verdict.mean() < 1
    if rule.binary:
        assert set(verdict.tolist()) == {0.0, 1.0}


def test_right_in_every_draw_is_right_and_wrong_in_every_draw_is_wrong(rule: VerdictRule) -> None:
    logits, y = _logits(), _labels()
    right = logits.scatter(-1, y.expand(DRAWS, -1)[..., None], 10.0)
    assert (rule(right, y) == 1).all()
    wrong = logits.scatter(-1, y.expand(DRAWS, -1)[..., None], -10.0)
    assert (rule(wrong, y) == 0).all()


def test_the_order_of_draws_matters_to_one_shot_only(rule: VerdictRule) -> None:
    logits, y = _logits(), _labels()
    order = torch.tensor([3, 1, 6, 0, 5, 2, 4])
    same = torch.equal(rule(logits, y), rule(logits[order], y))
    assert same == (rule.name != "one_shot")


def test_images_are_judged_alone(rule: VerdictRule) -> None:
    logits, y = _logits(), _labels()
    together = rule(logits, y)
    order = torch.randperm(BATCH, generator=generator())
    assert torch.equal(rule(logits[:, order], y[order]), together[order])
    for b in range(10):
        assert torch.equal(rule(logits[:, b : b + 1], y[b : b + 1]), together[b : b + 1])


def test_ties_are_wrong(rule: VerdictRule) -> None:
    """argmax would hand a tie to the lowest class: defences that saturate would win points by class order."""
    y = torch.arange(CLASSES)
    assert (rule(torch.zeros(DRAWS, CLASSES, CLASSES), y) == 0).all()
    two_best = torch.zeros(DRAWS, CLASSES, CLASSES)
    two_best[:, :, :2] = 1.0
    assert (rule(two_best, y) == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_nan_or_infinite_everywhere_are_wrong(rule: VerdictRule, value: float) -> None:
    assert (rule(torch.full((DRAWS, CLASSES, CLASSES), value), torch.arange(CLASSES)) == 0).all()


@pytest.mark.parametrize("where", ["true", "other"])
def test_one_nan_in_a_draw_makes_that_draw_wrong(where: str) -> None:
    y = torch.tensor([1])
    logits = torch.tensor([0.0, 5.0, 0.0]).expand(3, 1, 3).clone()
    logits[0, 0, 1 if where == "true" else 2] = float("nan")
    assert float(OneShot()(logits, y)) == 0.0
    assert float(Expected(3)(logits, y)) == pytest.approx(2 / 3)
    assert float(Worst(3)(logits, y)) == 0.0
    assert float(MeanLogit(3)(logits, y)) == 0.0
    assert float(Majority(3)(logits, y)) == 1.0  # two votes of three


def test_too_few_draws_are_refused(rule: VerdictRule) -> None:
    with pytest.raises(ValueError, match=f"The rule {rule.name} takes {rule.num_draws} draws, but only"):
        rule(_logits()[: rule.num_draws - 1], _labels())


def test_more_draws_than_the_rule_takes_do_not_matter(rule: VerdictRule) -> None:
    longer = torch.cat((_logits(), _logits(1)))
    assert torch.equal(rule(longer, _labels()), rule(_logits(), _labels()))


@pytest.mark.parametrize("name", [name for name in RULES if name != "one_shot"])
def test_no_draw_at_all_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="num_draws is 0"):
        RULES[name](0)


def test_one_shot_takes_the_first_draw() -> None:
    logits, y = _logits(), _labels()
    assert torch.equal(OneShot()(logits, y), (logits[0].argmax(-1) == y).double())


def test_with_one_draw_all_rules_agree() -> None:
    logits, y = _logits()[:1], _labels()
    expected = OneShot()(logits, y)
    for rule in all_rules(1):
        assert torch.equal(rule(logits, y), expected)


def test_rules_are_ordered_as_they_must_be() -> None:
    logits, y = _logits(), _labels()
    verdict = {rule.name: rule(logits, y) for rule in all_rules(DRAWS)}
    for weaker in ("one_shot", "majority", "mean_logit", "expected"):
        assert (verdict["worst"] <= verdict[weaker]).all()
    assert (verdict["majority"] >= (verdict["expected"] > 0.5).double()).all()
    assert (verdict["expected"] >= verdict["one_shot"] / DRAWS).all()
    fewer = Worst(3)(logits, y)
    assert (verdict["worst"] <= fewer).all()


def test_expected_is_the_share_of_right_draws_and_worst_their_product() -> None:
    logits, y = _logits(), _labels()
    right = (logits.argmax(-1) == y).double()
    torch.testing.assert_close(Expected(DRAWS)(logits, y), right.mean(0))
    assert torch.equal(Worst(DRAWS)(logits, y), right.prod(0))


def test_votes_leave_out_ties_and_nan() -> None:
    logits = torch.tensor([[1.0, 0, 0], [1, 1, 0], [float("nan"), 2, 0], [0, 0, 3]])[:, None]
    assert votes(logits).tolist() == [[1.0, 0.0, 1.0]]


def test_majority_counts_votes_and_mean_logit_adds_logits() -> None:
    """Two narrow votes beat one loud draw under majority, and lose under the mean."""
    logits, y = torch.tensor([[0.1, 0.0], [0.1, 0.0], [0.0, 9.0]])[:, None], torch.tensor([0])
    assert float(Majority(3)(logits, y)) == 1.0
    assert float(MeanLogit(3)(logits, y)) == 0.0


def test_strictly_right_takes_infinite_logits_of_wrong_classes() -> None:
    scores = torch.tensor([[0.0, -torch.inf, -1.0], [0.0, torch.inf, -1.0]])
    assert strictly_right(scores, torch.tensor([0, 0])).tolist() == [True, False]
