"""APGD against a straight transcription of its algorithm, and the ratios of logits that AutoAttack ascends."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lustral.attacks import (
    APGD,
    PGD,
    Answer,
    APGDTargeted,
    Attack,
    Cases,
    Deviation,
    DifferenceOfLogitsRatio,
    Engine,
    FirstOrderAttack,
    MeanLogitCrossEntropy,
    Objective,
    RandomDirections,
    State,
    TargetedDifferenceOfLogitsRatio,
)
from lustral.attacks.apgd import checkpoints
from lustral.attacks.first_order import likeliest_wrong_classes
from lustral.attacks.objectives import TARGET, TargetMargin
from lustral.evaluation import Defence, Fingerprint, make_card
from lustral.noise import NoiseStream
from lustral.purifiers import Identity, Purifier
from lustral.threat import ThreatModel
from tests.contracts import (
    NoisyPurifier,
    ToyClassifier,
    cases,
    central_differences,
    generator,
    images,
    randomise,
    relative_error,
    right_cases,
    stream,
    toy_evaluator,
)

LINF, L2 = ThreatModel("linf", "16/255"), ThreatModel("l2", 0.5)
THREATS = pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])


def _engine(purifier: Purifier | None = None, classes: int = 3, rows: int = 16) -> Engine:
    return Engine(Defence(ToyClassifier(classes), purifier or Identity()), rows)


def _watched(attack: FirstOrderAttack) -> list[tuple[State, Answer, State]]:
    """Collects every update of ``attack``: the state, the answer and the state after."""
    found, update = [], attack.update

    def recording(state: State, answer: Answer) -> State:
        found.append((state, answer, update(state, answer)))
        return found[-1][2]

    attack.update = recording  # type: ignore[method-assign]
    return found


# Algorithm 1 ------------------------------------------------------------


def test_checkpoints_are_those_of_the_paper() -> None:
    """p = 0, 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99: by hand."""
    assert checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1000) == [0, 220, 410, 570, 700, 800, 870, 930, 990]
    assert checkpoints(20) == [0, 5, 9, 12, 14, 16, 18, 19, 20]
    assert checkpoints(1) == [0, 1]


Iterates = tuple[list[Tensor], list[float]]


def _reference(f: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, eps: float, steps: int, norm: str) -> Iterates:
    """Iterates x_1 ... x_steps and step sizes of one image (C, H, W): lists and floats, a line of the paper each."""

    def project(point: Tensor) -> Tensor:
        delta = point - x
        if norm == "linf":
            delta = delta.clamp(-eps, eps)
        elif float(delta.norm()) > eps:
            delta = delta * ((1 - 1e-6) * eps / float(delta.norm()))  # by which the threat model stays inside
        return (x + delta).clamp(0, 1)

    def value_and_direction(point: Tensor) -> tuple[float, Tensor]:
        leaf = point.clone().requires_grad_()
        value = f(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
        return float(value.detach()), gradient.sign() if norm == "linf" else gradient / gradient.norm()

    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    looks = sorted({int(-(-round(share * steps, 6) // 1)) for share in shares})

    eta, alpha, rho = 2 * eps, 0.75, 0.75
    value, direction = value_and_direction(start)
    values, best = [value], (value, start, direction)
    known = {0: (eta, value)}  # at each checkpoint: the step size used until then, and the best value
    points, etas = [start, project(start + eta * direction)], []
    for k in range(1, steps):
        value, direction = value_and_direction(points[k])
        values.append(value)
        best = max(best, (value, points[k], direction), key=lambda found: found[0])
        if k in looks:
            before = looks[looks.index(k) - 1]
            known[k] = (eta, best[0])
            rises = sum(values[i + 1] > values[i] for i in range(before, k))
            if rises < rho * (k - before) or known[before] == known[k]:
                eta /= 2
                points[k], direction = best[1], best[2]
        etas.append(eta)
        z = project(points[k] + eta * direction)
        points.append(project(points[k] + alpha * (z - points[k]) + (1 - alpha) * (points[k] - points[k - 1])))
    return points[1:], etas


@THREATS
@pytest.mark.parametrize("steps", [13, 50])
def test_iterates_are_those_of_a_straight_transcription(threat: ThreatModel, steps: int) -> None:
    """On a rough classifier, for images whose steps are halved at different checkpoints. In float64: where a walk has
    come to rest, rounding would decide what rises."""
    classifier = ToyClassifier().double().requires_grad_(False)
    randomise(classifier, 2.0)
    labels = cases(12).labels
    chosen = Cases(images(12, dtype=torch.float64), labels, stream(12).index)
    attack = APGD(steps, selection="last")
    updates = _watched(attack)
    attack(Engine(Defence(classifier, Identity()), 12), chosen, threat, stream(12))
    assert len(updates) == steps
    start = updates[0][0].query
    assert (threat.distance(start, chosen.images) > 0).all()
    found = torch.stack([state.query for _, _, state in updates])
    sizes = torch.stack([state.memory["step"] for _, _, state in updates])
    schedules = set()
    for b in range(12):

        def loss(point: Tensor, b: int = b) -> Tensor:
            return F.cross_entropy(classifier(point[None]), labels[b, None])

        points, etas = _reference(loss, chosen.images[b], start[b], threat.budget, steps, threat.norm)
        assert sizes[1:, b].tolist() == pytest.approx(etas)
        # An iterate that is replaced by the best point is still the query; the reference has the best in its place.
        for k, point in enumerate(points):
            halved = k + 1 < steps and etas[k] < (etas[k - 1] if k else 2 * threat.budget)
            if not halved:
                torch.testing.assert_close(found[k, b], point, rtol=0, atol=1e-6)
        schedules.add(tuple(etas))
    assert len(schedules) > 3, "the test needs images of several step schedules"


def _straight(rows: int, steps: int, losses: Callable[[int], list[float]]) -> list[State]:
    """The states of an attack whose losses are given, iteration by iteration; gradients are of alternating sign."""
    attack, x = APGD(steps, random_start=False), images(rows)
    state, found = attack.start(x, torch.zeros(rows, dtype=torch.long), LINF, stream(rows)), []
    for k in range(steps):
        loss = torch.tensor(losses(k))
        gradient = torch.ones_like(x) * (1 if k % 2 else -1)
        logits, none = torch.zeros(1, rows, 3), torch.zeros(rows)
        state = attack.update(state, Answer(loss, loss, gradient, logits, none, none))
        found.append(state)
    return found


def test_the_step_is_halved_by_either_condition_and_by_nothing_else() -> None:
    """100 steps, checkpoints at 22, 41, 57, ...: rows whose losses always rise, never rise, rise often enough but never
    above the first, and rise in exactly 0.75 of the steps between 41 and 57."""

    def losses(k: int) -> list[float]:
        exactly = float(k) if k <= 41 or k > 57 else 41 + (k - 41) - 2.5 * max(0, k - 53)
        return [float(k), -float(k), 200.0 if k == 0 else float(k), exactly]

    states = _straight(4, 100, losses)
    eps = LINF.budget
    steps = torch.stack([state.memory["step"] for state in states]) / eps
    assert (steps[:22] == 2).all(), "x_22 is the first that is looked at"
    assert (steps[:, 0] == 2).all()
    halvings = [22, 41, 57, 70, 80, 87, 93, 99]
    for k in range(100):
        assert float(steps[k, 1]) == 2 * 0.5 ** sum(k >= w for w in halvings)
        # Condition 2 asks for a step that was not halved at the last checkpoint: at every second one.
        assert float(steps[k, 2]) == 2 * 0.5 ** sum(k >= w for w in halvings[::2])
    assert float(steps[57, 3]) == 2, "12 of 16 is 0.75, which is not less"
    assert float(steps[69, 3]) == 2


def test_a_halved_walk_goes_on_from_the_best_point_with_its_gradient() -> None:
    states = _straight(1, 30, lambda k: [5.0 if k == 3 else 0.0])
    (first, *_), look = checkpoints(30)[1:], 7
    assert first == look
    best, previous = states[2].query, states[look - 1].memory["previous"]
    after = states[look]
    assert torch.equal(after.memory["best"], best)
    assert torch.equal(after.memory["previous"], best)
    x, eps = after.x, LINF.budget
    z = LINF.project(best + eps * 1.0, x)  # iteration 3 is odd: its gradient is positive
    assert torch.equal(after.query, LINF.project(best + 0.75 * (z - best) + 0.25 * (best - previous), x))
    assert not torch.equal(best, previous)


@THREATS
def test_the_momentum_is_a_quarter_of_the_last_move(threat: ThreatModel) -> None:
    """Recomputed from recorded iterates; a momentum that is always zero is an error that was seen elsewhere."""
    chosen, attack = cases(8), APGD(20)
    updates = _watched(attack)
    attack(_engine(NoisyPurifier(0.05)), chosen, threat, stream(8))
    moves = []
    for (_, _, before), (state, answer, after) in pairwise(updates):
        unhalved = after.memory["step"] == state.memory["step"]
        step = after.memory["step"][:, None, None, None]
        z = threat.project(state.query + step * threat.ascent_direction(answer.gradient), chosen.images)
        last = state.query - before.memory["previous"]
        expected = threat.project(state.query + 0.75 * (z - state.query) + 0.25 * last, chosen.images)
        torch.testing.assert_close(after.query[unhalved], expected[unhalved], rtol=0, atol=1e-6)
        moves.append((after.query - threat.project(state.query + 0.75 * (z - state.query), chosen.images)).abs().amax())
    assert min(moves) > 1e-4
    for _, _, state in updates:
        assert threat.distance(state.query, chosen.images).max() <= threat.budget + 1e-6


@THREATS
def test_it_beats_a_fixed_step_chance_and_no_gradient(threat: ThreatModel) -> None:
    chosen, engine = right_cases(40), _engine()
    budget = ThreatModel(threat.norm, threat.budget / 4)
    attacks: list[Attack] = [APGD(20), PGD(20), RandomDirections(1), APGD(20, gradient="detached")]
    losses = []
    for attack in attacks:
        found = attack(engine, chosen, budget, stream(40)).images
        losses.append(float(F.cross_entropy(engine.logits(found, stream(40))[0], chosen.labels)))
    assert losses[0] > 1.1 * max(losses[1:]), losses


def test_a_random_defence_is_attacked_on_fresh_draws_and_the_card_is_ok() -> None:
    """Long steps predict far more than they gain: the audit must not take that for a blind gradient."""
    attack = APGD(20, eot=4, selection_draws=8)
    evaluator = toy_evaluator(NoisyPurifier(0.1), attack, ThreatModel("linf", "32/255"), audit_images=8)
    records = evaluator.evaluate(right_cases(24), torch.arange(24) < 8)
    fingerprint = Fingerprint(evaluator.decides())
    content = {"sha256": fingerprint.sha256, "decides": fingerprint.decides}
    card = make_card(records, content, [vars(evaluator.cost)])
    verdict = card["verdicts"]["expected"]
    assert verdict["robust"]["value"] < verdict["clean"]["value"] - 0.3
    assert card["audit"]["loss"]["gain_share"] > 0.05
    assert {"double_eot", "double_eps", "large_eps"} <= card["audit"]["expected_accuracy"].keys()
    assert card["status"] == "ok"


# Objectives ------------------------------------------------------------


def test_ratios_of_logits_have_closed_values() -> None:
    """By hand, from the logits 4, 3, 1, 0 and -2; the mean over draws of the same and of logits twice as large."""
    z = torch.tensor([[4.0, 3.0, 1.0, 0.0, -2.0]]).repeat(5, 1)
    logits, y = torch.stack((z, 2 * z)), torch.arange(5)
    dlr = DifferenceOfLogitsRatio()(logits, y, {})
    torch.testing.assert_close(dlr, torch.tensor([-1.0, 1.0, 3.0, 4.0, 6.0]) / 3)
    target = torch.tensor([1, 0, 4, 2, 0])
    aimed = partial(TargetedDifferenceOfLogitsRatio(), given={TARGET: target})
    torch.testing.assert_close(aimed(logits, y), torch.tensor([-1.0, 1.0, -3.0, 1.0, 6.0]) / 3.5)
    torch.testing.assert_close(aimed(logits + 100, y), aimed(logits, y))
    equal = torch.ones(1, 2, 4)
    assert DifferenceOfLogitsRatio()(equal, y[:2], {}).tolist() == [0, 0]
    assert TargetedDifferenceOfLogitsRatio()(equal, 1 - y[:2], {}, {TARGET: y[:2]}).tolist() == [0, 0]


def test_a_targeted_loss_is_row_wise_bit_for_bit_and_ranked_without_its_target() -> None:
    logits = 5 * torch.randn(16, 33, 10, generator=generator())
    y = torch.randint(0, 10, (33,), generator=generator(1))
    target = (y + torch.randint(1, 10, (33,), generator=generator(2))) % 10
    objective = TargetedDifferenceOfLogitsRatio()
    together = objective(logits, y, {}, {TARGET: target})
    for first in range(0, 33, 7):
        rows = slice(first, first + 7)
        assert torch.equal(objective(logits[:, rows], y[rows], {}, {TARGET: target[rows]}), together[rows])
    assert objective.separable
    draws = torch.stack([objective(draw[None], y, {}, {TARGET: target}) for draw in logits])
    torch.testing.assert_close(draws.mean(0), together)
    assert torch.equal(objective.plain(logits, y, {}), DifferenceOfLogitsRatio()(logits, y, {}))


@pytest.mark.parametrize("rows", [3, 64])
def test_the_engine_hands_every_row_its_own_target(rows: int) -> None:
    """Also where chunks end in the middle of a draw: the gradient is the whole expression's."""
    defence = Defence(ToyClassifier(5).double(), NoisyPurifier(0.2))
    x, y, noise = images(5, dtype=torch.float64), torch.arange(5), stream(5)
    target, objective = torch.tensor([4, 0, 3, 1, 2]), TargetedDifferenceOfLogitsRatio()

    def folded(x: Tensor) -> Tensor:
        logits = defence(x.repeat(4, 1, 1, 1), noise.repeat(4)).logits
        return objective(logits.view(4, 5, -1), y, {}, {TARGET: target})

    answer = Engine(defence, rows).answer(x, y, noise, objective, 4, given={TARGET: target})
    torch.testing.assert_close(answer.loss, folded(x))
    torch.testing.assert_close(answer.rank, DifferenceOfLogitsRatio()(answer.logits, y, {}))
    assert relative_error(answer.gradient, central_differences(folded, x)) < 1e-6


def test_the_mean_logits_are_judged_as_one() -> None:
    """Two draws that are right and one that is very wrong: the share of wrong draws is a third, the mean is wrong."""
    logits = torch.tensor([[[0.0, 5.0]], [[0.1, 0.0]], [[0.1, 0.0]]])
    objective, y = MeanLogitCrossEntropy(), torch.tensor([0])
    assert objective.target == "mean_logit"
    assert objective.wrongness(logits, y).tolist() == [1.0]
    mean = torch.tensor([0.2 / 3, 5 / 3])
    assert float(objective(logits, y, {})) == pytest.approx(float(mean.logsumexp(0) - mean[0]))


# Targets ------------------------------------------------------------


def test_targets_are_the_likeliest_wrong_classes_of_the_clean_image_under_the_defence() -> None:
    engine, chosen, attack = _engine(NoisyPurifier(0.3), 6), cases(20, classes=6), APGDTargeted(2, 4, eot=8)
    found = attack.targets(engine, chosen, stream(20))
    assert found.shape == (4, 20)
    logits = engine.logits(chosen.images, stream(20), 8).mean(0)
    for b, label in enumerate(chosen.labels.tolist()):
        wrong = sorted((c for c in range(6) if c != label), key=lambda c: -float(logits[b, c]))
        assert found[:, b].tolist() == wrong[:4]


def _right(engine: Engine, batch: int) -> Cases:
    return Cases(images(batch), engine.logits(images(batch), stream(batch))[0].argmax(1), stream(batch).index)


def test_every_restart_leads_to_its_target() -> None:
    """The loss of a target is the highest where its own restart ended; and most images that the first one breaks are
    taken for it. (The ratio asks for a target above the true class, not above all.)"""
    engine, attack, steps = _engine(NoisyPurifier(0.02), 5), APGDTargeted(15, 4), 15
    chosen, updates = _right(engine, 30), _watched(attack)
    attack(engine, chosen, ThreatModel("linf", "8/255"), stream(30))
    assert len(updates) == 4 * steps
    targets = attack.targets(engine, chosen, stream(30).fork("attack", "APGDTargeted", "targets"))
    ends = [engine.logits(updates[steps * r - 1][2].memory["best"], stream(30), 4) for r in (1, 2, 3, 4)]
    loss = TargetedDifferenceOfLogitsRatio()
    found = torch.stack(
        [torch.stack([loss(end, chosen.labels, {}, {TARGET: target}) for end in ends]) for target in targets]
    )
    assert (found.argmax(1) == torch.arange(4)[:, None]).float().mean() > 0.8
    wrong = ends[0][0].argmax(1) != chosen.labels
    assert wrong.sum() > 10
    assert (ends[0][0].argmax(1) == targets[0])[wrong].float().mean() > 0.9


def test_a_target_that_breaks_a_deterministic_defence_ends_the_search() -> None:
    engine, attack = _engine(classes=5), APGDTargeted(10, 4)
    chosen, updates = _right(engine, 24), _watched(attack)
    found = attack(engine, chosen, ThreatModel("linf", "8/255"), stream(24)).images
    broken = engine.logits(found, stream(24))[0].argmax(1) != chosen.labels
    sizes = [len(state.y) for state, _, _ in updates]
    assert sizes[0] == 24
    assert sizes == sorted(sizes, reverse=True)
    assert 0 < 24 - int(broken.sum()) <= sizes[-1] < 12


# Errors ------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: APGD(0), "num_steps is 0"),
        (lambda: APGD(restarts=2, random_start=False), "all would start at the image"),
        (lambda: APGD(eot=0), "eot is 0"),
        (lambda: APGDTargeted(num_targets=0), "num_targets is 0"),
        (lambda: APGDTargeted(finalists=0), "finalists is 0"),
    ],
)
def test_impossible_options_are_refused(build: Callable[[], Attack], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("attack", "classes", "message"),
    [
        (PGD(2, objective=DifferenceOfLogitsRatio()), 2, "compares the 3 largest logits, but .* has 2 classes"),
        (APGDTargeted(2, 2), 3, "compares the 4 largest logits, but .* has 3 classes"),
        (APGDTargeted(2, 9), 5, "num_targets is 9, but a classifier of 5 classes has only 4 wrong ones"),
        pytest.param(
            lambda: PGD(2, objective=TargetedDifferenceOfLogitsRatio()),
            5,
            "takes the target of each image, which PGD does not choose: use .*APGDTargeted",
            id="attack3-5-has no target class: use .*APGDTargeted",
        ),
    ],
)
def test_attacks_that_the_classes_are_too_few_for_are_refused(
    attack: Attack | Callable[[], Attack], classes: int, message: str
) -> None:
    def run() -> None:
        built = attack if isinstance(attack, Attack) else attack()
        built(_engine(classes=classes), cases(3, classes=classes), LINF, NoiseStream(0, cases(3).index))

    with pytest.raises(ValueError, match=message):
        run()


@pytest.mark.parametrize(
    "objective", [TargetedDifferenceOfLogitsRatio(), TargetMargin(), Deviation(TargetMargin(), 1.0)]
)
@pytest.mark.parametrize("kind", [PGD, APGD])
def test_what_an_objective_expects_is_asked_for_at_construction(kind: type[PGD | APGD], objective: Objective) -> None:
    """Before any image; a steered objective expects what the one inside does. One that gives it is not refused."""
    name = f"{type(objective).__name__} takes the target of each image, which {kind.__name__} does not choose"
    with pytest.raises(ValueError, match=name):
        kind(2, objective=objective)

    class Choosing(kind):  # type: ignore[misc, valid-type]
        gives = (TARGET,)

        def targets(self, engine: Engine, cases: Cases, noise: NoiseStream) -> Tensor:
            return likeliest_wrong_classes(engine, cases, noise, 1, 1)

    if not objective.needs:
        attack = Choosing(4, objective=objective)
        updates = _watched(attack)
        engine = _engine(NoisyPurifier(0.02), 5)
        attack(engine, _right(engine, 6), LINF, stream(6))
        assert all(TARGET in state.given for state, _, _ in updates)
        assert updates[-1][1].loss.mean() > updates[0][1].loss.mean()


def test_a_query_without_what_the_objective_expects_is_refused() -> None:
    engine, chosen = _engine(classes=5), cases(3, classes=5)
    with pytest.raises(ValueError, match="takes the target of each image, which nobody chose: use an attack that does"):
        engine.answer(chosen.images, chosen.labels, stream(3), TargetedDifferenceOfLogitsRatio())
