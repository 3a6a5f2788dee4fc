"""Attacks on a defence with a detector: their losses in closed form, and what they do to a group."""

import pytest
import torch

from lustral.attacks import (
    PGD,
    CrossEntropy,
    Engine,
    Evade,
    LagrangianPGD,
    Margin,
    MixedGroups,
    OrthogonalPGD,
    SelectiveEvasion,
    WithStatistic,
    gradient_attacks,
)
from lustral.attacks.engine import Answer
from lustral.attacks.evading_pgd import MULTIPLIER
from lustral.attacks.victim import Cases
from lustral.evaluation import Defence
from lustral.purifiers import Variant
from lustral.threat import ThreatModel
from tests.contracts import ToyClassifier, generator, images, stream
from tests.toys.detection import SHAPE, bright, dad

THREAT = ThreatModel("linf", "32/255")
RAW = Variant({"route": "raw"})


def test_the_losses_in_closed_form() -> None:
    logits, y = torch.randn(2, 3, 4, generator=generator()), torch.tensor([0, 1, 3])
    alarm = torch.tensor([[0.2, 0.95, 1.5]]).expand(2, 3).double()
    plain = Margin()(logits, y)
    evade = Evade(Margin(), 4.0, 0.1)(logits, y, {"alarm": alarm})
    torch.testing.assert_close(evade, plain - 4.0 * torch.tensor([0.0, 0.05, 0.6]))
    selective = SelectiveEvasion(Margin(), 0.1)(logits, y, {"alarm": alarm})
    torch.testing.assert_close(selective, torch.stack((plain[0], torch.tensor(-0.95), torch.tensor(-1.5))))
    published = WithStatistic(CrossEntropy(), 100.0)(logits, y, {"statistic": alarm})
    torch.testing.assert_close(published, CrossEntropy()(logits, y) + 100.0 * alarm[0].float())
    for objective in (Evade(Margin()), SelectiveEvasion(Margin()), WithStatistic(Margin(), 1.0)):
        assert isinstance(objective.plain, Margin), "the detector's term steers, and ranks nothing"


def test_iterates_that_evade_are_ranked_before_those_that_are_detected() -> None:
    trace = {"alarm": torch.tensor([[0.5, 1.0, 1.1, 3.0], [0.7, 1.0, 1.1, 3.0]], dtype=torch.float64)}
    plain = torch.tensor([1.0, 2.0, 90.0, 900.0])
    for objective in (Evade(CrossEntropy()), SelectiveEvasion(Margin())):
        assert objective.ranked(plain, trace).argsort(descending=True).tolist() == [1, 0, 2, 3]
    engine, cases = _engine(THRESHOLD)
    state = LagrangianPGD(5).start(bright(8), cases.labels, THREAT, stream(8))
    for attack in (LagrangianPGD(5, surrogate=RAW), OrthogonalPGD(5, surrogate=RAW)):
        assert attack.ask(attack.source(engine), state, stream(8), None).rank.max() < -1e4


def _engine(threshold: float) -> tuple[Engine, Cases]:
    network = ToyClassifier(shape=SHAPE).requires_grad_(False)
    x = images(8, SHAPE, 3)
    return Engine(Defence(network, dad(threshold)), 8), Cases(x, network(x).argmax(1), stream(8).index)


def _detected(engine: Engine, x: torch.Tensor) -> torch.Tensor:
    return engine.judge(x, stream(8), wants=["detected"])[1]["detected"][0]


THRESHOLD = 0.003
"""Clean groups are below it, and an attack that does not look at it goes beyond."""
EVADING = {
    "lagrangian": lambda: LagrangianPGD(30, surrogate=RAW),
    "selective": lambda: PGD(30, surrogate=RAW, objective=SelectiveEvasion(CrossEntropy(), 0.3)),
    "orthogonal": lambda: OrthogonalPGD(30, surrogate=RAW, margin=0.05),
}


def test_the_cross_entropy_alone_sets_the_alarm_off() -> None:
    engine, cases = _engine(THRESHOLD)
    assert not _detected(engine, cases.images).any()
    found = PGD(30, surrogate=RAW, selection="last")(engine, cases, THREAT, stream(8))
    assert _detected(engine, found.images).all()


@pytest.mark.parametrize("name", EVADING)
def test_evading_attacks_break_images_and_stay_below_the_threshold(name: str) -> None:
    engine, cases = _engine(THRESHOLD)
    attack = EVADING[name]()
    attack.selection = "last"
    found = attack(engine, cases, THREAT, stream(8))
    assert not found.failed.any()
    assert not _detected(engine, found.images).any()
    wrong = engine.logits(found.images, stream(8))[0].argmax(1) != cases.labels
    assert wrong.float().mean() >= 0.5


def test_a_multiplier_grows_beyond_the_margin_and_shrinks_below_it() -> None:
    attack, x = LagrangianPGD(5, margin=0.1, weight=2.0, factor=1.5), images(2, SHAPE)
    state = attack.start(x, torch.zeros(2, dtype=torch.int64), THREAT, stream(2))
    zero = torch.zeros(2)
    trace = {"alarm": torch.tensor([[0.5, 0.95]], dtype=torch.float64)}
    answer = Answer(zero, zero, torch.ones_like(x), torch.zeros(1, 2, 3), zero, zero, trace)
    assert attack.update(state, answer).given[MULTIPLIER].tolist() == [2.0 / 1.5, 3.0]


def test_an_orthogonal_step_is_orthogonal_to_the_statistic() -> None:
    engine, cases = _engine(1.0)  # far away: the loss is followed
    attack = OrthogonalPGD(5, surrogate=RAW)
    source = attack.source(engine)
    state = attack.start(cases.images, cases.labels, THREAT, stream(8))
    own = attack.ask(source, state, stream(8), None).gradient
    alarm = source.answer(state.query, state.y, stream(8), attack._alarm).gradient
    for group in (slice(0, 4), slice(4, 8)):
        dot = (own[group] * alarm[group]).sum() / (own[group].norm() * alarm[group].norm())
        assert abs(float(dot)) < 1e-5


@pytest.mark.parametrize(("share", "count"), [(0.25, 1), ("1/2", 2), (1.0, 4)])
def test_mixed_groups_perturb_a_share_of_each_group(share: float | str, count: int) -> None:
    engine, cases = _engine(THRESHOLD)
    attack = MixedGroups(PGD(3, surrogate=RAW), share)
    assert [type(each) for each in gradient_attacks(attack)] == [PGD]
    found = attack(engine, cases, THREAT, stream(8))
    moved = found.distance > 0
    assert torch.equal(moved, found.statistics["free"] == 1)
    assert moved.view(2, 4).sum(1).tolist() == [count, count]


def test_a_poisoned_group_leaves_the_images_that_it_aims_at() -> None:
    engine, cases = _engine(THRESHOLD)
    attack = MixedGroups(PGD(3, surrogate=Variant({"route": "denoised"})), 0.25, "others")
    found = attack(engine, cases, THREAT, stream(8))
    assert (found.distance > 0).view(2, 4).sum(1).tolist() == [1, 1]


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="share is 0"):
        MixedGroups(PGD(3), 0)
    with pytest.raises(ValueError, match=r"margin is 1\.0"):
        Evade(CrossEntropy(), margin=1.0)
    with pytest.raises(ValueError, match="factor 1"):
        LagrangianPGD(5, factor=1.0)
    engine, cases = _engine(THRESHOLD)
    with pytest.raises(ValueError, match="leaves no other images in groups of 4"):
        MixedGroups(PGD(3), 1.0, "others")(engine, cases, THREAT, stream(8))
