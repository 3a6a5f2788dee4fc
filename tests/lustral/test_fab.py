"""FAB: projections against a linear program and bisection, exact distances of linear classifiers, a straight walk."""

import math
from collections.abc import Collection

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from lustral.attacks import (
    FAB,
    Answer,
    Cases,
    Engine,
    Ensemble,
    FirstOrderAttack,
    GradientAttack,
    Judged,
    Square,
    State,
    gradient_attacks,
    surrogates,
)
from lustral.attacks.fab import to_hyperplane
from lustral.attacks.first_order import likeliest_wrong_classes
from lustral.attacks.leaderboard import MEASURES
from lustral.attacks.objectives import TARGET, TargetMargin
from lustral.evaluation import Defence
from lustral.evaluation.probes import on_the_defence, twice_the_steps
from lustral.noise import NoiseStream
from lustral.purifiers import Context, GradientMode, Identity, Variant
from lustral.threat import ThreatModel
from tests.contracts import (
    NoisyPurifier,
    Recording,
    ToyClassifier,
    cases,
    generator,
    images,
    relative_error,
    right_cases,
    stream,
    toy_evaluator,
)

LINF, L2 = ThreatModel("linf", "16/255"), ThreatModel("l2", 0.3)
NORMS = pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])


class Linear:
    """A victim of three classes whose logits are linear in the pixels."""

    random = False

    def __init__(self, scale: float = 1.0) -> None:
        self.weights = scale * torch.randn(3, 16, generator=generator(5), dtype=torch.float64)
        self.offsets = scale * torch.randn(3, generator=generator(6), dtype=torch.float64)

    def logits(self, x: Tensor) -> Tensor:
        return x.flatten(1).double() @ self.weights.T + self.offsets

    def __call__(
        self,
        x: Tensor,
        noise: NoiseStream,
        gradient: GradientMode = "exact",
        context: Context | None = None,
        wants: Collection[str] = frozenset(),
    ) -> Judged:
        return Judged(self.logits(x).to(x.dtype))

    def cases(self, batch: int) -> Cases:
        """Cases that it gets right."""
        x = images(batch)
        return Cases(x, self.logits(x).argmax(1), stream(batch).index)

    def distances(self, chosen: Cases, threat: ThreatModel) -> Tensor:
        """(B,) the exact ones to the boundary, |margin| / dual norm of the difference of weights, without the box."""
        logits, between = self.logits(chosen.images), self.weights[None] - self.weights[chosen.labels][:, None]
        dual = between.abs().sum(-1) if threat.norm == "linf" else between.norm(dim=-1)
        lack = logits.gather(1, chosen.labels[:, None]) - logits
        return (lack / dual).scatter(1, chosen.labels[:, None], math.inf).amin(1)


# The projection ------------------------------------------------------------


def _hyperplanes(batch: int, size: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Points, some of them on the box's faces; normals, some with zeros; and what is lacking, up to out of reach."""
    x = torch.rand(batch, size, generator=generator(1), dtype=torch.float64)
    x[:, 0], x[: batch // 2, 1] = 0.0, 1.0
    w = torch.randn(batch, size, generator=generator(2), dtype=torch.float64)
    w[::3, 4:7] = 0.0
    reach = torch.where(w > 0, w * (1 - x), -w * x).sum(1)
    back = torch.where(w > 0, w * x, -w * (1 - x)).sum(1)
    share = torch.linspace(-1.3, 1.3, batch, dtype=torch.float64)
    return x, w, torch.where(share > 0, share * reach, share * back)


def test_the_linf_projection_is_the_linear_programs() -> None:
    """min t with -t <= delta <= t, 0 <= x + delta <= 1, <w, delta> = lack."""
    x, w, lack = _hyperplanes(60)
    found = to_hyperplane(x, w, lack, LINF)
    out_of_reach = 0
    for b in range(60):
        eye = torch.eye(12, dtype=torch.float64)
        one = torch.ones(12, 1, dtype=torch.float64)
        best = linprog(
            [0.0] * 12 + [1.0],
            A_ub=torch.cat((torch.cat((eye, -one), 1), torch.cat((-eye, -one), 1))).numpy(),
            b_ub=[0.0] * 24,
            A_eq=torch.cat((w[b], torch.zeros(1, dtype=torch.float64)))[None].numpy(),
            b_eq=[float(lack[b])],
            bounds=[(-value, 1 - float(value)) for value in x[b]] + [(0, None)],
        )
        if best.success:
            assert float(found[b] @ w[b]) == pytest.approx(float(lack[b]), abs=1e-9)
            assert float(found[b].abs().amax()) == pytest.approx(best.fun, abs=1e-9)
        else:
            out_of_reach += 1
            assert torch.equal(x[b] + found[b], _corner(x, w, lack)[b])
    assert 10 < out_of_reach < 20
    assert (x + found).amin() >= 0
    assert (x + found).amax() <= 1


def test_the_l2_projection_is_the_multipliers() -> None:
    """delta = clip(lambda w) into the box's room, with lambda by bisection: the Karush-Kuhn-Tucker conditions."""
    x, w, lack = _hyperplanes(60)
    found = to_hyperplane(x, w, lack, L2)
    out_of_reach = 0
    for b in range(60):

        def step(multiplier: float, b: int = b) -> Tensor:
            return torch.maximum(torch.minimum(multiplier * w[b], 1 - x[b]), -x[b])

        low, high = -1e6, 1e6
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if float(step(middle) @ w[b]) < float(lack[b]) else (low, middle)
        if abs(high) < 1e5:
            assert float(found[b] @ w[b]) == pytest.approx(float(lack[b]), abs=1e-9)
            torch.testing.assert_close(found[b], step(high), rtol=0, atol=1e-8)
        else:
            out_of_reach += 1
            torch.testing.assert_close(x[b] + found[b], _corner(x, w, lack)[b], rtol=0, atol=1e-12)
    assert 10 < out_of_reach < 20


def _corner(x: Tensor, w: Tensor, lack: Tensor) -> Tensor:
    """Every pixel that matters at the face of the box that the plane lies behind."""
    direction = w * lack[:, None]
    return torch.where(direction == 0, x, (direction > 0).double())


@NORMS
def test_a_projection_goes_nowhere_where_nothing_is_known_or_lacking(threat: ThreatModel) -> None:
    x, w, lack = _hyperplanes(10)
    assert (to_hyperplane(x, torch.zeros_like(w), lack, threat) == 0).all()
    assert (to_hyperplane(x, w, torch.zeros_like(lack), threat) == 0).all()


@NORMS
def test_a_projection_is_accurate_over_many_pixels_and_magnitudes(threat: ThreatModel) -> None:
    """Normals of float32 gradients over 20 decades, and one pixel that must do nearly all."""
    x = torch.rand(4, 20_000, generator=generator(3), dtype=torch.float64)
    w = torch.randn(4, 20_000, generator=generator(4), dtype=torch.float64)
    w *= 10.0 ** torch.randint(-20, 1, w.shape, generator=generator(5))
    w[3, 1:] *= 1e-12
    reach = torch.where(w > 0, w * (1 - x), -w * x).sum(1)
    for share in (1e-6, 0.5, 0.999999):
        found = to_hyperplane(x, w, share * reach, threat)
        torch.testing.assert_close((found * w).sum(1), share * reach, rtol=1e-9, atol=0)


def test_a_smaller_box_binds_earlier() -> None:
    x, w = torch.full((1, 2), 0.5, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    small = ThreatModel("linf", 0.1, (0.25, 0.625))
    lack = torch.tensor([1.0], dtype=torch.float64)
    assert to_hyperplane(x, w, lack, small).tolist() == [[0.125, 0.125]]
    assert to_hyperplane(x, w, -lack, small).tolist() == [[-0.25, -0.25]]


# The walk ------------------------------------------------------------


@pytest.mark.parametrize("threat", [ThreatModel("linf", 0.1), ThreatModel("l2", 0.3)], ids=["linf", "l2"])
def test_a_linear_classifiers_distances_are_exact(threat: ThreatModel) -> None:
    victim = Linear()
    chosen = victim.cases(60)
    exact = victim.distances(chosen, threat)
    within = exact < 0.99 * threat.budget
    assert 20 < int(within.sum()) < 55, "the test needs some out of reach; the box is out of the way of all"
    result = FAB(20, 2)(Engine(victim, 16), chosen, threat, stream(60))
    broken = victim.logits(result.images).argmax(1) != chosen.labels
    assert torch.equal(broken[within], torch.ones(int(within.sum()), dtype=torch.bool))
    assert not broken[exact > threat.budget].any()
    distance = result.distance.double()
    assert (distance[within] >= exact[within] * (1 - 1e-5)).all(), "nothing is nearer than the boundary"
    assert relative_error(distance[within], exact[within]) < 1.2e-4
    beyond = exact > 1.01 * threat.budget
    torch.testing.assert_close(distance[beyond], torch.full_like(distance[beyond], threat.budget), rtol=1e-4, atol=0)


@NORMS
def test_beyond_the_budget_the_nearest_point_is_projected(threat: ThreatModel) -> None:
    victim = Linear(1.0)
    chosen = victim.cases(60)
    large, small = threat.scaled(20.0, (1, 4, 4)), threat.scaled(0.05, (1, 4, 4))
    nearest = FAB(20, 2)(Engine(victim, 16), chosen, large, stream(60)).images
    found = FAB(20, 2)(Engine(victim, 16), chosen, small, stream(60)).images
    assert int((large.distance(nearest, chosen.images) > small.budget).sum()) > 30
    assert torch.equal(found, small.project(nearest, chosen.images))


@pytest.mark.parametrize("threat", [ThreatModel("linf", 0.3), ThreatModel("l2", 1.0)], ids=["linf", "l2"])
def test_the_walk_is_the_straight_reference(threat: ThreatModel) -> None:
    """One image and target after the other, with projections that know no box, as it does not bind here."""
    classifier, chosen = ToyClassifier().requires_grad_(False), right_cases(12)
    alpha_max, eta, beta, steps = 0.2, 1.1, 0.8, 6

    def margin(x: Tensor, y: int) -> float:
        logits = classifier(x[None])[0]
        return float(logits[[k for k in range(3) if k != y]].amax() - logits[y])

    def length(delta: Tensor) -> float:
        return float(delta.abs().amax() if threat.norm == "linf" else delta.norm())

    def shortest(w: Tensor, lack: float) -> Tensor:
        return lack * (w.sign() / w.abs().sum() if threat.norm == "linf" else w / w.square().sum())

    expected = []
    for x, label in zip(chosen.images, chosen.labels, strict=True):
        y, best = int(label), x
        targets = sorted((k for k in range(3) if k != y), key=lambda k, x=x: -float(classifier(x[None])[0, k]))
        for target in targets:
            current = x
            for _ in range(steps):
                leaf = current.clone().requires_grad_()
                logits = classifier(leaf[None])[0]
                gap = logits[target] - logits[y]
                (w,) = torch.autograd.grad(gap, leaf)
                value = float(gap.detach())
                near = shortest(w, -value)
                far = shortest(w, -value + float((w * (current - x)).sum()))
                alpha = min(length(near) / (length(near) + length(far)), alpha_max)
                current = (1 - alpha) * (current + eta * near) + alpha * (x + eta * far)
                assert 0 < current.min() <= current.max() < 1
                if margin(current, y) > 0:
                    if torch.equal(best, x) or length(current - x) < length(best - x):
                        best = current
                    current = x + beta * (current - x)
        low, high = 0.0, 1.0
        for _ in range(3):
            ends = margin(x + low * (best - x), y), margin(x + high * (best - x), y)
            share = min((low + (high - low) * ends[0] / (ends[0] - ends[1])) * (1 + 1e-4), high)
            low, high = (low, share) if margin(x + share * (best - x), y) > 0 else (share, high)
        expected.append(x + high * (best - x))
    attack = FAB(steps, 2, alpha_max, eta, beta)
    result = attack(Engine(Defence(classifier, Identity()), 8), chosen, threat, stream(12))
    assert (result.distance > 0).all()
    assert (result.distance < 0.99 * threat.budget).all()
    torch.testing.assert_close(result.images, torch.stack(expected), rtol=0, atol=2e-5)


def test_one_step_stays_in_the_box_and_goes_back_from_beyond() -> None:
    """A pixel at its face cannot move; where the plane is behind, the step leads back to it."""
    x = torch.tensor([0.0, 0.5]).view(1, 1, 1, 2).repeat(2, 1, 1, 1)
    w = torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2).repeat(2, 1, 1, 1)
    loss = torch.tensor([-0.2, 0.2])
    answer = Answer(loss, loss, w, torch.zeros(1, 2, 2), torch.ones(2), torch.zeros(2))
    attack = FAB(1, 1, alpha_max=0.0, eta=1.0)
    after = attack.update(State(x, x, torch.zeros(2, dtype=torch.int64), LINF), answer).query
    torch.testing.assert_close(after[0].flatten(), torch.tensor([0.0, 0.7]))
    torch.testing.assert_close(after[1].flatten(), torch.tensor([0.1, 0.4]))


def test_images_that_are_wrong_at_once_come_back_untouched_and_cost_nothing_more() -> None:
    chosen, recording = cases(20), Recording(Defence(ToyClassifier(), Identity()))
    wrong = ToyClassifier()(chosen.images).argmax(1) != chosen.labels
    assert 2 < int(wrong.sum()) < 18
    result = FAB(4, 2)(Engine(recording, 4), chosen, LINF, stream(20))
    assert torch.equal(result.distance == 0, wrong)
    calls = [row for rows, index in recording.calls for row in index[:rows]]
    asked = torch.tensor([calls.count(int(i)) for i in chosen.index])
    assert int(asked[wrong].float().median()) <= 4 < int(asked[~wrong].min())
    alone = FAB(4, 2)(Engine(recording, 4), chosen.select(wrong), LINF, stream(20).select(wrong))
    assert (alone.distance == 0).all()


def test_targets_are_the_most_likely_wrong_classes() -> None:
    victim = Linear()
    chosen = victim.cases(30)
    found = likeliest_wrong_classes(Engine(victim, 8), chosen, stream(30), 1, 2)
    for b, logits in enumerate(victim.logits(chosen.images)):
        ranked = [k for k in logits.argsort(descending=True).tolist() if k != int(chosen.labels[b])]
        assert found[:, b].tolist() == ranked
    with pytest.raises(ValueError, match=r"attack\.num_targets is 3, but a classifier of 3 classes has only 2 wrong"):
        FAB(1, 3)(Engine(victim, 8), chosen, LINF, stream(30))


def test_the_objective_is_the_targets_logit_minus_the_true_one() -> None:
    logits = torch.tensor([[[1.0, 2.0, 4.0], [0.0, 0.0, 5.0]], [[3.0, 2.0, 0.0], [1.0, 3.0, 5.0]]])
    y, target = torch.tensor([0, 2]), torch.tensor([2, 1])
    assert TargetMargin()(logits, y, {}, {TARGET: target}).tolist() == [0.0, -3.5]
    assert TargetMargin().plain(logits, y, {}).tolist() == [1.0, -3.5]
    engine, chosen = Engine(Linear(), 8), cases(2)
    with pytest.raises(
        ValueError, match="TargetMargin takes the target of each image, which nobody chose: use an attack"
    ):
        engine.answer(chosen.images, chosen.labels, stream(2), TargetMargin())


def test_gradients_of_zero_lead_nowhere_and_are_counted() -> None:
    chosen = right_cases(5)
    attack = FAB(3, 2, gradient="detached")
    result = attack(Engine(Defence(ToyClassifier(), Identity()), 8), chosen, LINF, stream(5))
    assert torch.equal(result.images, chosen.images)
    assert (result.statistics["zero_gradients"] == 1).all()


# Random defences ------------------------------------------------------------


def test_a_random_defence_gets_the_whole_budget() -> None:
    """Most of these images are wrong as they are, and would come back untouched if one look could decide."""
    chosen, engine = cases(30), Engine(Defence(ToyClassifier(), NoisyPurifier(0.1)), 16)
    for threat in (LINF, L2):
        result = FAB(6, 2, eot=2, selection_draws=4)(engine, chosen, threat, stream(30))
        assert (result.distance > 0.9 * threat.budget).all()


def test_a_random_defence_without_a_signal_is_not_broken_by_looking_often() -> None:
    """Wrong in 2.4 % of draws, whatever it sees."""
    chosen = cases(40)
    correct = torch.nn.functional.one_hot(chosen.labels, 3).float()

    class Flickering:
        random = True

        def __call__(
            self,
            x: Tensor,
            noise: NoiseStream,
            gradient: GradientMode = "exact",
            context: Context | None = None,
            wants: Collection[str] = frozenset(),
        ) -> Judged:
            row = (noise.index[:, None] == chosen.index[None]).int().argmax(1)
            signs = torch.where(noise.fork("flicker").uniform((1,)) > 0.024, 1.0, -1.0)
            return Judged(signs * correct[row] + 1e-3 * x.flatten(1)[:, :3])

    engine = Engine(Flickering(), 16)
    result = FAB(50, 2, selection_draws=1)(engine, chosen, LINF, stream(40))
    assert (result.distance > 0.9 * LINF.budget).all(), "one wrong draw let an image go"
    judged = engine.logits(result.images, stream(40).fork("verdict"), 50)
    accuracy = float((judged.argmax(-1) == chosen.labels).float().mean())
    assert abs(accuracy - 0.976) < 4 * (0.024 / 2000) ** 0.5


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_budget_and_a_negligible_one_return_the_clean_number(norm: str) -> None:
    chosen, engine = right_cases(60), Engine(Defence(ToyClassifier(), NoisyPurifier(0.1)), 64)

    def errors(x: Tensor, name: str) -> Tensor:
        return (engine.logits(x, stream(60).fork(name), 60).argmax(-1) != chosen.labels).double().mean(0)

    clean = errors(chosen.images, "clean")
    for eps in (0, 1e-6, 0.2):
        threat = ThreatModel(norm, eps)  # type: ignore[arg-type]
        found = FAB(6, 2, eot=2, selection_draws=4)(engine, chosen, threat, stream(60)).images
        difference = errors(found, f"adversarial {eps}") - clean
        noise = math.sqrt(float((clean * (1 - clean)).sum()) * 2 / 60)
        assert (float(difference.sum()) > 4 * noise) == (eps == 0.2)
        assert float(difference.sum()) > -4 * noise


# The audit ------------------------------------------------------------


def test_its_gradients_are_audited() -> None:
    attack = FAB(4, 2, eot=2, selection_draws=2)
    evaluator = toy_evaluator(NoisyPurifier(0.1), attack, audit_images=2)
    records = evaluator.evaluate(right_cases(6), torch.arange(6) < 2)
    assert not any(record.failed for record in records)
    assert set(records[0].statistics) == set(MEASURES)
    assert {"bpda", "double_eot", "double_eps", "large_eps"} <= set(records[0].audit or {})
    assert sum(r.statistics["loss_last"] - r.statistics["loss_first"] for r in records) > 0


def test_a_surrogate_lends_its_gradients_only() -> None:
    """What is across is for the defence to say: a surrogate of the very same network changes nothing."""
    chosen, purifier = right_cases(8), Identity()
    engine = Engine(Defence(ToyClassifier(), purifier), 8)
    threat = ThreatModel("linf", 0.3)
    own, lent = (FAB(6, 2, surrogate=each)(engine, chosen, threat, stream(8)) for each in (None, Identity()))
    assert torch.equal(own.images, lent.images)
    noisy = FAB(6, 2, eot=4, surrogate=NoisyPurifier(0.05))(engine, chosen, threat, stream(8))
    assert (engine.logits(noisy.images, stream(8))[0].argmax(1) != chosen.labels).all()
    assert not torch.equal(own.images, noisy.images)


def test_it_follows_gradients_and_takes_no_steps_of_its_own() -> None:
    """The audit asks of it what it asks of every attack with gradients, also as a member of an ensemble."""
    attack, surrogate = FAB(4, 2), NoisyPurifier(0.05)
    other = FAB(4, 2, surrogate=surrogate)
    assert isinstance(attack, GradientAttack)
    assert not isinstance(attack, FirstOrderAttack)
    assert gradient_attacks(attack) == [attack]
    assert gradient_attacks(Ensemble([Square(5), attack, Ensemble([other])])) == [attack, other]
    assert surrogates(Ensemble([attack, other, FAB(2, 1, surrogate=surrogate)])) == [surrogate]
    assert attack.sees_the_defence
    assert not other.sees_the_defence
    doubled = twice_the_steps(attack)
    assert isinstance(doubled, FAB)
    assert (doubled.num_steps, doubled.num_targets, attack.num_steps) == (8, 2, 4)
    direct = on_the_defence(FAB(4, 2, surrogate=surrogate, eta=1.2), ["exact", "bpda"])
    assert isinstance(direct, FAB)
    assert (direct.surrogate, direct.eta, direct.sees_the_defence) == (None, 1.2, True)


def test_a_variant_and_a_held_context_lend_their_gradients_too() -> None:
    chosen, threat = right_cases(8), ThreatModel("linf", 0.3)
    engine = Engine(Defence(ToyClassifier(), NoisyPurifier(0.2)), 8)
    variant, full = (
        FAB(3, 2, eot=2, selection_draws=2, surrogate=each)(engine, chosen, threat, stream(8)).images
        for each in (Variant({"std": 0.05}), NoisyPurifier(0.05))
    )
    assert torch.equal(variant, full)
    with pytest.raises(ValueError, match="context is clean, but nothing that NoisyPurifier decides"):
        FAB(3, 2, context="clean")(engine, chosen, threat, stream(8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps is 0"),
        ({"num_targets": 0}, "num_targets is 0; it must be at least 1"),
        ({"eot": 0}, "eot is 0"),
        ({"selection_draws": 0}, "selection_draws is 0"),
        ({"alpha_max": 1.5}, "alpha_max is 1.5; it must be between 0 and 1"),
        ({"eta": 0.9}, "eta is 0.9; it must be at least 1"),
        ({"eta": math.inf}, "eta is inf"),
        ({"beta": 1.0}, "beta is 1.0; it must be above 0 and below 1"),
        ({"gradient": "numeric"}, "gradient is 'numeric'"),
    ],
)
def test_impossible_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FAB(**options)
