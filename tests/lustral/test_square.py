"""Square: its schedule and proposals at hand-computed numbers, a linear classifier, and honesty under noise."""

import math
from collections.abc import Callable, Collection
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lustral.attacks import Cases, CrossEntropy, Deviation, Engine, Judged, MeanLogitMargin, Square
from lustral.attacks import square as proposals
from lustral.attacks.objectives import TargetMargin
from lustral.evaluation import Defence
from lustral.noise import NoiseStream
from lustral.purifiers import Context, GradientMode, Identity
from lustral.threat import ThreatModel
from tests.contracts import (
    NoisyPurifier,
    Recording,
    ToyClassifier,
    cases,
    generator,
    images,
    right_cases,
    stream,
    toy_evaluator,
)

LINF, L2 = ThreatModel("linf", "16/255"), ThreatModel("l2", 0.3)
CPU = torch.device("cpu")


class Answering:
    """A victim made of a function of images and noise."""

    def __init__(self, logits: Callable[[Tensor, NoiseStream], Tensor], random: bool) -> None:
        self.logits, self.random = logits, random

    def __call__(
        self,
        x: Tensor,
        noise: NoiseStream,
        gradient: GradientMode = "exact",
        context: Context | None = None,
        wants: Collection[str] = frozenset(),
    ) -> Judged:
        return Judged(self.logits(x, noise))


# The schedule and the proposals ------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_queries", "halvings"),
    [
        (10_000, {10: 0, 11: 1, 50: 1, 51: 2, 201: 3, 501: 4, 1001: 5, 2001: 6, 4001: 7, 6001: 8, 8000: 8, 8001: 9}),
        (5000, {5: 0, 6: 1, 25: 1, 26: 2, 100: 2, 101: 3, 250: 3, 251: 4, 500: 4, 501: 5, 1001: 6, 4000: 8, 4001: 9}),
        (500, {0: 0, 1: 1, 2: 1, 3: 2, 10: 2, 11: 3, 25: 3, 26: 4, 50: 4, 51: 5, 400: 8, 401: 9, 499: 9}),
    ],
)
def test_the_share_is_halved_at_the_published_iterations_in_proportion(num_queries: int, halvings: dict) -> None:
    attack = Square(num_queries, p_init=0.8)
    assert {k: attack.share(k) for k in halvings} == {k: 0.8 / 2**count for k, count in halvings.items()}


def test_autoattacks_schedule_does_not_follow_the_number_of_queries() -> None:
    attack, halvings = Square(5000, p_init=0.8, schedule="absolute"), {10: 0, 11: 1, 4000: 6, 4001: 7, 4999: 7}
    assert {k: attack.share(k) for k in halvings} == {k: 0.8 / 2**count for k, count in halvings.items()}


def test_a_square_covers_its_share() -> None:
    """Of 1024 pixels: sqrt(819.2) = 28.6, sqrt(409.6) = 20.2, sqrt(1.6) = 1.3."""
    shape = torch.Size((3, 32, 32))
    assert [proposals._side(share, shape) for share in (0.8, 0.4, 0.8 / 512, 1e-9)] == [29, 20, 1, 1]
    assert proposals._side(1.0, torch.Size((1, 4, 16))) == 4, "no larger than the image"


def test_the_bumps_are_those_of_the_paper() -> None:
    """Side 3: n = 1, so a centre of 1 + 1/4 in rings of 1/4; the left one is a column wide, the right one two."""
    expected = torch.tensor([[1, -1, -1], [5, -1, -5], [1, -1, -1]], dtype=torch.float64)
    torch.testing.assert_close(proposals._bumps(3, CPU), expected / math.sqrt(57), rtol=1e-14, atol=0)
    five = proposals._bump(5, 3, CPU)
    assert five[2].tolist() == pytest.approx([1 / 4 + 1 / 9, 1 + 1 / 4 + 1 / 9, 1 / 4 + 1 / 9])
    assert five[0].tolist() == pytest.approx([1 / 9] * 3)
    assert proposals._bumps(1, CPU).abs().tolist() == [[1.0]]


def test_a_linf_proposal_is_a_square_of_one_sign_a_channel_anywhere() -> None:
    x, eps = images(600, (2, 5, 6)), 0.05
    incumbent = x + eps * torch.where(torch.rand(x.shape, generator=generator()) < 0.5, -1.0, 1.0)
    moved = proposals._square(x, incumbent, 0.3, eps, stream(600))
    places, signs = set(), torch.zeros(2, 2)
    for b in range(600):
        delta = (moved[b] - x[b]) / eps
        fits = []
        for top in range(3):
            for left in range(4):
                window = delta[:, top : top + 3, left : left + 3]
                outside = torch.ones(5, 6, dtype=torch.bool)
                outside[top : top + 3, left : left + 3] = False
                one_sign = (window - window[:, :1, :1]).abs().max() < 1e-4
                if one_sign and torch.equal(moved[b][:, outside], incumbent[b][:, outside]):
                    fits.append((top, left))
                    sign = (window[:, 0, 0] > 0).long()
        assert len(fits) == 1
        assert delta.abs().max() < 1 + 1e-4
        places.update(fits)
        signs[sign[0], sign[1]] += 1
    assert len(places) == 12, "the last row and column are reached as well"
    assert (signs - 150).abs().max() < 4 * math.sqrt(600 * 0.25 * 0.75)


def _algorithm_3(x: Tensor, incumbent: Tensor, side: int, eps: float, uniform: Tensor) -> Tensor:
    """One image (C, H, W), line by line, in float64."""
    delta = (incumbent - x).double()
    channels, height, width = delta.shape
    r1, s1, r2, s2 = (
        int(u * (n - side + 1)) for u, n in zip(uniform[:4].tolist(), (height, width, height, width), strict=True)
    )
    eta = proposals._bumps(side, CPU)
    eta = eta.T if uniform[4] < 0.5 else eta
    unused = max(eps**2 - float(delta.square().sum()), 0.0)
    result = delta.clone()
    for i in range(channels):
        rho = -1.0 if uniform[5 + i] < 0.5 else 1.0
        held = delta[i, r1 : r1 + side, s1 : s1 + side]
        temp = rho * eta + (held / held.norm() if held.norm() > 0 else 0.0)
        either = torch.zeros(height, width, dtype=torch.bool)
        either[r1 : r1 + side, s1 : s1 + side] = True
        either[r2 : r2 + side, s2 : s2 + side] = True
        available = math.sqrt(float(delta[i][either].square().sum()) + unused / channels)
        result[i, r2 : r2 + side, s2 : s2 + side] = 0.0
        result[i, r1 : r1 + side, s1 : s1 + side] = temp / temp.norm() * available
    return result


@pytest.mark.parametrize("side", [3, 5])
def test_an_l2_proposal_is_algorithm_3(side: int) -> None:
    x, eps = images(40, (2, 9, 7), dtype=torch.float64), 0.4
    direction = torch.randn(x.shape, generator=generator(4), dtype=torch.float64)
    length = torch.linspace(0, eps, 40, dtype=torch.float64)[:, None, None, None]  # the first have budget to spare
    incumbent = x + direction / direction.flatten(1).norm(dim=1)[:, None, None, None] * length
    moved = proposals._moved_bumps(x, incumbent, side**2 / 63, eps, stream(40))
    uniform = stream(40).uniform((7,), dtype=torch.float64)
    for b in range(40):
        expected = _algorithm_3(x[b], incumbent[b], side, eps, uniform[b])
        torch.testing.assert_close((moved - x)[b], expected, rtol=1e-9, atol=1e-12)
    norms = (moved - x).flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, eps), rtol=1e-9, atol=0)


def test_l2_windows_are_odd_and_at_least_three() -> None:
    x = images(30, (1, 8, 8), dtype=torch.float64)
    for share, side in ((1e-9, 3), (16 / 64, 5), (1.0, 7)):
        changed = (proposals._moved_bumps(x, x, share, 0.1, stream(30)) != x)[:, 0]
        assert (changed.any(2).sum(1) == side).all()
        assert (changed.any(1).sum(1) == side).all()


def test_starting_points_use_the_whole_budget() -> None:
    x = images(20, (3, 11, 13))
    stripes = proposals._stripes(x, 0.05, stream(20)) - x
    assert torch.allclose(stripes.abs(), torch.tensor(0.05), atol=1e-6)
    assert (stripes.amax(2) - stripes.amin(2)).abs().max() < 1e-6, "a column has one sign"
    assert len({tuple(row.sign().flatten().tolist()) for row in stripes[:, :, 0]}) == 20
    tiles = (proposals._tiles(x, 0.3, stream(20)) - x).double()
    norms = tiles.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, 0.3), rtol=1e-6, atol=0)
    parts = tiles[:, :, :10, :12].unfold(2, 2, 2).unfold(3, 2, 2).square().sum((-1, -2)).sqrt()
    assert parts.shape == (20, 3, 5, 6)
    torch.testing.assert_close(parts, torch.full_like(parts, 0.3 / math.sqrt(3 * 5 * 6)), rtol=1e-4, atol=0)


# A linear classifier ------------------------------------------------------------


def _linear(batch: int) -> tuple[Tensor, Tensor, Cases]:
    """Weights (3, 16), offsets, and cases that the classifier gets right."""
    weights, offsets = torch.randn(3, 16, generator=generator(5)), torch.randn(3, generator=generator(6))
    x = images(batch)
    return weights, offsets, Cases(x, (x.flatten(1) @ weights.T + offsets).argmax(1), stream(batch).index)


@pytest.mark.parametrize("threat", [ThreatModel("linf", "12/255"), ThreatModel("l2", 0.3)], ids=["linf", "l2"])
def test_a_linear_classifier_breaks_where_it_can_be_broken(threat: ThreatModel) -> None:
    """The largest margin within the budget is known: margin + eps * dual norm of the difference of two weights."""
    weights, offsets, chosen = _linear(80)

    def logits(x: Tensor, noise: NoiseStream) -> Tensor:
        return x.flatten(1) @ weights.T + offsets

    between = weights[None] - weights[chosen.labels][:, None]
    dual = between.abs().sum(-1) if threat.norm == "linf" else between.norm(dim=-1)
    clean = logits(chosen.images, stream(80))
    reach = clean - clean.gather(1, chosen.labels[:, None]) + threat.budget * dual
    reach = reach.scatter(1, chosen.labels[:, None], -torch.inf).amax(1)
    result = Square(600)(Engine(Answering(logits, False), 16), chosen, threat, stream(80))
    found = logits(result.images, stream(80))
    true = found.gather(1, chosen.labels[:, None])[:, 0]
    margin = found.scatter(1, chosen.labels[:, None], -torch.inf).amax(1) - true
    broken = found.argmax(1) != chosen.labels
    assert 15 < int(broken.sum()) < 65
    assert not (broken & (reach < 0)).any()
    assert (margin <= reach + 1e-5).all(), "nothing does more than the budget allows"
    if threat.norm == "linf":  # single pixels at the end: random search finds the corner itself
        assert torch.equal(broken, reach > 0)
        torch.testing.assert_close(margin[~broken], reach[~broken], rtol=0, atol=1e-5)
    else:  # windows of at least 3 x 3 do not fit weights without any smoothness
        assert int(broken.sum()) >= 0.6 * int((reach > 0).sum())
    assert torch.equal(result.statistics["queries"] < 600, broken)


def test_the_incumbents_loss_never_falls_on_a_deterministic_defence() -> None:
    chosen = right_cases(20)
    losses = []
    for num_queries in (1, 2, 9):  # the schedules differ, so only the first two share their proposals
        attack = Square(num_queries, objective=CrossEntropy())
        result = attack(Engine(Defence(ToyClassifier(), Identity()), 8), chosen, ThreatModel("linf", 0.01), stream(20))
        found = result.statistics
        assert (found["loss_last"] >= found["loss_first"]).all()
        assert torch.equal(found["loss_last"] > found["loss_first"], found["accepted"] > 0)
        losses.append(found["loss_first"])
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])


def test_decided_cases_leave_and_restarts_go_on_with_the_others() -> None:
    chosen, recording = right_cases(24), Recording(Defence(ToyClassifier(), Identity()))
    result = Square(30, restarts=3)(Engine(recording, 4), chosen, LINF, stream(24))
    broken = ToyClassifier()(result.images).argmax(1) != chosen.labels
    assert 0 < int(broken.sum()) < 24
    assert (result.statistics["queries"][~broken] == 90).all()
    assert (result.statistics["queries"][broken] < 90).all()
    assert sum(rows for rows, _ in recording.calls) < 0.8 * 24 * 90
    once = Square(30)(Engine(Defence(ToyClassifier(), Identity()), 4), chosen, LINF, stream(24)).images
    first = ToyClassifier()(once).argmax(1) != chosen.labels
    assert torch.equal(result.images[first], once[first]), "a broken case keeps the image that broke it"
    assert (broken | ~first).all()


# Random defences ------------------------------------------------------------


def test_incumbent_and_proposal_are_judged_on_the_same_draws() -> None:
    """A defence that answers nothing but noise gives both the same loss, so nothing is ever accepted."""

    def logits(x: Tensor, noise: NoiseStream) -> Tensor:
        return noise.fork("answer").normal((3,))

    for eot in (1, 3):
        found = Square(25, eot=eot)(Engine(Answering(logits, True), 8), cases(12), LINF, stream(12)).statistics
        assert (found["accepted"] == 0).all()
        assert (found["queries"] == 2 * 25 - 1).all()
        assert (found["loss_first"] != found["loss_last"]).all(), "every iteration has new draws"


@pytest.mark.parametrize("threat", [ThreatModel("linf", "2/255"), ThreatModel("l2", 0.02)], ids=["linf", "l2"])
def test_noise_that_all_images_share_changes_no_decision(threat: ThreatModel) -> None:
    """Two classes whose margin is shifted by far more than any proposal can gain: an incumbent that kept its lucky loss
    would stay for ever, but on the same draws each comparison is the noiseless one."""
    weights = torch.randn(16, generator=generator(5), dtype=torch.float64)

    def exact(x: Tensor, noise: NoiseStream) -> Tensor:
        score = 10 + x.flatten(1).double() @ weights
        return torch.stack((score, -score), 1)

    def shifted(x: Tensor, noise: NoiseStream) -> Tensor:
        return exact(x, noise) + 20 * noise.fork("shift").normal((2,), dtype=torch.float64)

    chosen = Cases(images(20), torch.zeros(20, dtype=torch.int64), stream(20).index)
    calm, shaken = (
        Square(150)(Engine(Answering(logits, random), 16), chosen, threat, stream(20))
        for logits, random in ((exact, False), (shifted, True))
    )
    assert (calm.statistics["queries"] == 150).all(), "nobody leaves"
    assert torch.equal(calm.images, shaken.images)
    assert torch.equal(calm.statistics["accepted"], shaken.statistics["accepted"])
    assert calm.statistics["accepted"].amin() >= 3


def test_a_random_defence_is_not_broken_by_looking_often() -> None:
    """A defence that is wrong in 2.4 % of draws, whatever it sees."""
    chosen = cases(40)

    def logits(x: Tensor, noise: NoiseStream) -> Tensor:
        row = (noise.index[:, None] == chosen.index[None]).int().argmax(1)
        signs = torch.where(noise.fork("flicker").uniform((1,)) > 0.024, 1.0, -1.0)
        return signs * F.one_hot(chosen.labels, 3)[row].float() + 1e-3 * x.flatten(1)[:, :3]

    engine = Engine(Answering(logits, True), 16)
    result = Square(100, selection_draws=1)(engine, chosen, LINF, stream(40))
    assert (result.statistics["queries"] == 199).all(), "one wrong draw let an image go"
    judged = engine.logits(result.images, stream(40).fork("verdict"), 50)
    accuracy = float((judged.argmax(-1) == chosen.labels).float().mean())
    assert abs(accuracy - 0.976) < 4 * (0.024 / 2000) ** 0.5


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_budget_and_a_negligible_one_return_the_clean_number(norm: Literal["linf", "l2"]) -> None:
    chosen, engine = right_cases(60), Engine(Defence(ToyClassifier(), NoisyPurifier(0.1)), 64)

    def errors(x: Tensor, name: str) -> Tensor:
        return (engine.logits(x, stream(60).fork(name), 60).argmax(-1) != chosen.labels).double().mean(0)

    clean = errors(chosen.images, "clean")
    assert 0.02 < float(clean.mean()) < 0.4
    for eps in (0, 1e-6, 0.3):
        found = Square(40, selection_draws=4)(engine, chosen, ThreatModel(norm, eps), stream(60)).images
        difference = errors(found, f"adversarial {eps}") - clean
        noise = math.sqrt(float((clean * (1 - clean)).sum()) * 2 / 60)
        assert (float(difference.sum()) > 4 * noise) == (eps == 0.3)
        assert float(difference.sum()) > -4 * noise


def test_earlier_incumbents_are_ranked_by_the_mean_of_their_looks() -> None:
    """Three incumbents of one case and one of another, two places: by hand."""
    two = Cases(torch.zeros(2, 1, 1, 1), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    found = proposals._Found(two, finalists=2, group_size=1)
    found.begin(torch.full((2, 1, 1, 1), 0.1))
    rows, one = torch.tensor([0]), torch.tensor([True])
    for image, looks in ((1.0, (5.0, 1.0)), (2.0, (4.0,)), (3.0, (-1.0,)), (4.0, (3.5, 3.5))):
        for loss in looks:
            found.look(rows, torch.tensor([loss], dtype=torch.float64))
            kept = torch.full((1, 1, 1, 1), image)
            found.replace(rows, ~one, kept, torch.tensor([9.0], dtype=torch.float64))
        found.replace(rows, one, kept, torch.tensor([100.0], dtype=torch.float64))
    assert sorted(found.earlier[:, 0].flatten().tolist()) == [2.0, 4.0], "means 3, 4, -1 and 3.5"
    assert found.earlier[:, 1].flatten().tolist() == pytest.approx([0.1, 0.1]), "places are never the clean image"
    assert found.loss.tolist() == [100.0, 0.0]


def test_the_rule_aimed_at_is_the_objectives() -> None:
    assert Square().target == "expected"
    assert Square(objective=MeanLogitMargin()).target == "mean_logit"
    logits = torch.tensor([[[0.0, 5.0]], [[0.1, 0.0]], [[0.1, 0.0]]])
    y = torch.tensor([0])
    assert Square(objective=MeanLogitMargin()).score(logits, y)[0].tolist() == [1.0]
    assert Square().score(logits, y)[0].tolist() == [pytest.approx(1 / 3)]


# Contracts beyond the shared ones ------------------------------------------------------------


@pytest.mark.parametrize("random", [False, True])
def test_nan_is_reported_and_disturbs_nobody(random: bool) -> None:
    chosen = cases(6)
    inner = Defence(ToyClassifier(), NoisyPurifier(0.1) if random else Identity())
    bad = int(chosen.index[2])

    def logits(x: Tensor, noise: NoiseStream) -> Tensor:
        return inner(x, noise).logits * torch.where(noise.index == bad, torch.nan, 1.0)[:, None]

    attack = Square(12, selection_draws=4)
    result = attack(Engine(Answering(logits, random), 8), chosen, LINF, stream(6))
    assert result.failed.tolist() == [False, False, True, False, False, False]
    assert torch.equal(result.images[2], chosen.images[2])
    others = torch.tensor([0, 1, 3, 4, 5])
    assert torch.equal(result.images[others], attack(Engine(inner, 8), chosen, LINF, stream(6)).images[others])


@pytest.mark.parametrize("purifier", [Identity(), NoisyPurifier(0.1)], ids=["deterministic", "random"])
def test_an_evaluation_asks_it_for_no_gradients(purifier: Identity | NoisyPurifier) -> None:
    evaluator = toy_evaluator(purifier, Square(10, selection_draws=2), audit_images=2)
    records = evaluator.evaluate(right_cases(6), torch.arange(6) < 2)
    assert not any(record.failed for record in records)
    assert set(records[0].statistics) == {"queries", "accepted", "loss_first", "loss_last"}
    assert not {"double_eps", "large_eps"} & records[0].audit.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_queries": 0}, "num_queries is 0; it must be at least 1"),
        ({"restarts": 0}, "restarts is 0"),
        ({"eot": 0}, "eot is 0"),
        ({"finalists": 0}, "finalists is 0"),
        ({"selection_draws": 0}, "selection_draws is 0"),
        ({"p_init": 0.0}, "p_init is 0.0; it is a share of the image"),
        ({"p_init": 1.5}, "p_init is 1.5"),
        ({"schedule": "rescaled"}, "schedule is 'rescaled'; it may be proportional or absolute"),
        pytest.param(
            {"objective": Deviation(CrossEntropy(), 1.0)},
            "Deviation takes the deviation as well, but Square sees logits alone",
            id="options8-the deviation in the purifier, but Square sees",
        ),
        ({"objective": TargetMargin()}, "TargetMargin takes the target as well, but Square sees"),
    ],
)
def test_impossible_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Square(**options)
