"""Attacks and their engine: one contract for all attacks, PGD against a straight reference, null controls.

A new attack joins by one row in `ATTACKS`.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from lustral.attacks import (
    PGD,
    Answer,
    Attack,
    Cases,
    CrossEntropy,
    Engine,
    Judged,
    Margin,
    MeanLogitMargin,
    Objective,
    RandomDirections,
    State,
)
from lustral.diffusion import EulerMaruyama, VPSchedule
from lustral.evaluation import Defence, Evaluator, Protocol, Record, Worst, all_rules
from lustral.noise import NoiseStream
from lustral.purifiers import DiffPure, GradientMode, Identity
from lustral.threat import ThreatModel
from tests.contracts import (
    NoisyPurifier,
    SmoothDenoiser,
    ToyClassifier,
    cases,
    central_differences,
    generator,
    images,
    relative_error,
    stream,
)

LINF, L2 = ThreatModel("linf", "16/255"), ThreatModel("l2", 0.3)
OBJECTIVES: dict[str, Objective] = {
    "cross_entropy": CrossEntropy(),
    "margin": Margin(),
    "mean_logit_margin": MeanLogitMargin(),
}
ATTACKS: dict[str, tuple[Callable[[], Attack], ThreatModel]] = {
    "pgd": (lambda: PGD(6, eot=3, selection_draws=4), LINF),
    "pgd_l2": (lambda: PGD(6, eot=3, selection_draws=4), L2),
    "pgd_margin": (lambda: PGD(6, eot=2, objective=Margin(), selection_draws=4), LINF),
    "pgd_margin_l2": (lambda: PGD(6, eot=2, objective=Margin(), selection_draws=4), L2),
    "pgd_mean_logit": (lambda: PGD(6, eot=3, objective=MeanLogitMargin(), selection_draws=8), LINF),
    "pgd_restarts": (lambda: PGD(4, restarts=3, selection_draws=4), LINF),
    "pgd_restarts_l2": (lambda: PGD(4, restarts=2, eot=2, selection_draws=16), L2),
    "pgd_last": (lambda: PGD(4, eot=2, restarts=2, selection="last"), LINF),
    "pgd_no_random_start": (lambda: PGD(4, step_size="8/255", random_start=False, selection_draws=4), LINF),
    "pgd_large_step": (lambda: PGD(4, step_size=1.0, selection_draws=4), LINF),
    "pgd_bpda": (lambda: PGD(4, gradient="bpda", selection_draws=4), LINF),
    "random_directions": (lambda: RandomDirections(4, selection_draws=4), LINF),
    "random_directions_l2": (lambda: RandomDirections(4, selection_draws=4), L2),
}
DEFENCES: dict[str, Callable[[], Defence]] = {
    "undefended": lambda: Defence(ToyClassifier(), Identity()),
    "noisy": lambda: Defence(ToyClassifier(), NoisyPurifier(0.2)),
    "diffpure": lambda: Defence(
        ToyClassifier(), DiffPure(SmoothDenoiser(VPSchedule()).float(), EulerMaruyama(), 100, 2)
    ),
}
ON_DEFENCES = [(attack, defence) for attack in ATTACKS for defence in ("undefended", "noisy")]
ROWS = 8


def _attacked(attack: str, defence: str, chosen: Cases, seed: int = 0) -> Tensor:
    build, threat = ATTACKS[attack]
    return build()(Engine(DEFENCES[defence](), ROWS), chosen, threat, NoiseStream(seed, chosen.index)).images


def _right(batch: int) -> Cases:
    """Cases that the toy classifier gets right as long as nobody touches them."""
    chosen = cases(batch)
    return replace(chosen, labels=ToyClassifier()(chosen.images).argmax(1))


# The contract ------------------------------------------------------------


@pytest.mark.parametrize(("name", "defence"), [*ON_DEFENCES, ("pgd", "diffpure"), ("pgd_l2", "diffpure")])
def test_every_case_gets_a_perturbed_image_within_its_budget(name: str, defence: str) -> None:
    build, threat = ATTACKS[name]
    chosen, model = cases(9), DEFENCES[defence]()
    before, state = chosen.images.clone(), torch.get_rng_state()
    result = build()(Engine(model, ROWS), chosen, threat, stream(9))
    assert result.images.shape == chosen.images.shape
    assert result.images.dtype == torch.float32
    assert not result.images.requires_grad
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    assert threat.distance(result.images, chosen.images).max() <= threat.budget + 1e-6
    assert torch.equal(result.distance, threat.distance(result.images, chosen.images))
    assert not result.failed.any()
    assert all(values.shape == (9,) and values.isfinite().all() for values in result.statistics.values())
    if name != "pgd_no_random_start":  # from the image itself, a deterministic defence may be wrong at once
        assert (result.distance > 0).all()
    assert torch.equal(chosen.images, before), "the clean images were changed in place"
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ATTACKS)
def test_a_perturbed_image_is_kept_for_cases_that_hold_out(name: str) -> None:
    """A defence that nothing fools: what comes back is what the attack tried, not the clean image."""
    build, threat = ATTACKS[name]
    chosen = cases(6)
    right = F.one_hot(chosen.labels, 3).float() * 3

    class Unbroken:
        random = True

        def __call__(self, x: Tensor, noise: NoiseStream, gradient: GradientMode = "exact") -> Judged:
            row = (noise.index[:, None] == chosen.index[None]).int().argmax(1)
            return Judged(right[row] + 0.1 * x.flatten(1)[:, :3])

    result = build()(Engine(Unbroken(), ROWS), chosen, threat, stream(6))
    assert (result.distance > 0).all()


@pytest.mark.parametrize(("name", "defence"), ON_DEFENCES)
def test_the_stream_alone_decides(name: str, defence: str) -> None:
    first, again = (_attacked(name, defence, cases(7)) for _ in range(2))
    assert torch.equal(first, again)
    if defence == "noisy" or name != "pgd_no_random_start":
        assert not torch.equal(first, _attacked(name, defence, cases(7), seed=1))


@pytest.mark.parametrize(("name", "defence"), [*ON_DEFENCES, ("pgd", "diffpure"), ("pgd_l2", "diffpure")])
def test_an_image_does_not_depend_on_its_batch(name: str, defence: str) -> None:
    """Batches of 7 and 3, shuffled and single: bit for bit the same, as R is."""
    chosen = cases(21)
    together = _attacked(name, defence, chosen)
    order = torch.randperm(21, generator=generator(3))
    assert torch.equal(_attacked(name, defence, chosen.select(order)), together[order])
    for size in (7, 3):
        parts = [_attacked(name, defence, chosen.select(torch.arange(i, i + size))) for i in range(0, 21, size)]
        assert torch.equal(torch.cat(parts), together), size
    for b in (0, 5):
        assert torch.equal(_attacked(name, defence, chosen.select(torch.tensor([b]))), together[b : b + 1])


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
def test_the_base_brings_back_what_an_attack_let_slip(threat: ThreatModel) -> None:
    class Careless(Attack):
        def run(self, engine, cases, threat, noise):
            return cases.images + 10 * torch.randn(cases.images.shape, generator=generator()), {}

    chosen = cases(5)
    result = Careless()(Engine(DEFENCES["undefended"](), ROWS), chosen, threat, stream(5))
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    assert (result.distance > 0).all()
    assert result.distance.max() <= threat.budget + 1e-6


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("scale", [255.0, -1.0, float("nan")])
def test_images_off_the_unit_box_are_refused(name: str, scale: float) -> None:
    chosen = cases(3)
    chosen = replace(chosen, images=chosen.images * scale)
    with pytest.raises(ValueError, match=r"divide by 255"):
        ATTACKS[name][0]()(Engine(DEFENCES["undefended"](), ROWS), chosen, LINF, stream(3))


@pytest.mark.parametrize(("name", "defence"), ON_DEFENCES)
def test_without_a_budget_the_clean_image_comes_back(name: str, defence: str) -> None:
    build, threat = ATTACKS[name]
    chosen = cases(5)
    result = build()(Engine(DEFENCES[defence](), ROWS), chosen, ThreatModel(threat.norm, 0), stream(5))
    assert torch.equal(result.images, chosen.images)
    assert (result.distance == 0).all()


@pytest.mark.parametrize("name", [name for name in ATTACKS if name.startswith("pgd")])
def test_gradients_do_more_harm_than_chance(name: str) -> None:
    """On images that the classifier gets right, an attack must beat the control of its audit."""
    chosen = _right(40)
    build, threat = ATTACKS[name]
    engine, accuracy = Engine(DEFENCES["undefended"](), ROWS), {}
    for attack in (build(), RandomDirections(4)):
        found = attack(engine, chosen, threat, stream(40)).images
        accuracy[attack.name] = float((engine.logits(found, stream(40))[0].argmax(1) == chosen.labels).float().mean())
    assert accuracy["PGD"] < accuracy["RandomDirections"] - 0.15, accuracy


@pytest.mark.parametrize("name", [name for name in ATTACKS if name.startswith("pgd")])
def test_nan_in_the_victim_is_reported_and_not_attacked_away(name: str) -> None:
    """One image whose logits are NaN, always; the others must not notice."""
    build, threat = ATTACKS[name]
    chosen = cases(6)
    bad = int(chosen.index[2])
    inner = DEFENCES["noisy"]()

    class Broken:
        random = True

        def __call__(self, x: Tensor, noise: NoiseStream, gradient: GradientMode = "exact") -> Judged:
            logits = inner(x, noise, gradient).logits
            return Judged(logits * torch.where(noise.index == bad, torch.nan, 1.0)[:, None])

    result = build()(Engine(Broken(), ROWS), chosen, threat, stream(6))
    assert result.failed.tolist() == [False, False, True, False, False, False]
    assert torch.equal(result.images[2], chosen.images[2])
    healthy = build()(Engine(inner, ROWS), chosen, threat, stream(6))
    others = torch.tensor([0, 1, 3, 4, 5])
    assert torch.equal(result.images[others], healthy.images[others])


# PGD against a straight reference ------------------------------------------------------------


def _reference(model: Callable, x: Tensor, y: Tensor, eps: float, alpha: float, steps: int, norm: str) -> list[Tensor]:
    """PGD without random start as the classic implementations have it."""
    x_adv, iterates = x.clone(), []
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y, reduction="sum"), x_adv)
        if norm == "linf":
            delta = (x_adv.detach() + alpha * gradient.sign() - x).clamp(-eps, eps)
        else:
            delta = x_adv.detach() + alpha * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1) - x
            delta = delta * (eps / delta.flatten(1).norm(dim=1)).clamp(max=1).view(-1, 1, 1, 1)
        x_adv = (x + delta).clamp(0, 1)
        iterates.append(x_adv)
    return iterates


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_is_the_straight_reference_iterate_by_iterate(norm: str) -> None:
    classifier, chosen = ToyClassifier().requires_grad_(False), cases(16)
    eps, alpha = (16 / 255, 4 / 255) if norm == "linf" else (0.5, 0.1)
    attack = PGD(10, step_size=alpha, random_start=False, selection="last")
    iterates, update = [], attack.update

    def recording(state: State, answer: Answer) -> State:
        after = update(state, answer)
        iterates.append(after.query)
        return after

    attack.update = recording  # type: ignore[method-assign]
    engine = Engine(Defence(classifier, Identity()), rows=16)
    result = attack(engine, chosen, ThreatModel(norm, eps), stream(16))  # type: ignore[arg-type]
    expected = _reference(classifier, chosen.images, chosen.labels, eps, alpha, 10, norm)
    assert len(iterates) == len(expected) == 10
    for found, wanted in zip(iterates, expected, strict=True):
        if norm == "linf":
            assert torch.equal(found, wanted)
        else:
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert torch.equal(result.images, LINF.project(iterates[-1], chosen.images) if norm == "linf" else result.images)
    assert (iterates[-1] - iterates[0]).abs().max() > alpha / 2


def test_the_default_step_walks_two_and_a_half_budgets() -> None:
    assert PGD(20).step_length(LINF) == pytest.approx(2.5 * 16 / 255 / 20)
    assert PGD(20, step_size="2/255").step_length(LINF) == 2 / 255


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps is 0"),
        ({"restarts": 0}, "restarts is 0"),
        ({"eot": 0}, "eot is 0"),
        ({"finalists": 0}, "finalists is 0"),
        ({"selection_draws": 0}, "selection_draws is 0"),
        ({"step_size": 0}, r"attack\.step_size is 0; it must be positive"),
        ({"step_size": "two"}, r"attack\.step_size is 'two'"),
        ({"restarts": 2, "random_start": False}, "all would start at the image"),
    ],
)
def test_impossible_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PGD(**options)


@pytest.mark.parametrize("options", [{"tries": 0}, {"selection_draws": 0}])
def test_random_directions_refuse_nothing_to_try(options: dict) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        RandomDirections(**options)


# Objectives ------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_are_row_wise_bit_for_bit(name: str) -> None:
    """The score of an image decides which iterate is kept, so not a bit of it may depend on the batch."""
    objective = OBJECTIVES[name]
    logits = 5 * torch.randn(16, 33, 10, generator=generator())
    y = torch.randint(0, 10, (33,), generator=generator(1))
    together = objective(logits, y, {})
    assert together.shape == (33,)
    for size in (1, 3, 7):
        for first in range(0, 33, size):
            rows = torch.arange(first, min(first + size, 33))
            assert torch.equal(objective(logits[:, rows], y[rows], {}), together[rows])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_are_their_formulas(name: str) -> None:
    logits = torch.randn(5, 7, 4, generator=generator(), dtype=torch.float64)
    y = torch.randint(0, 4, (7,), generator=generator(1))
    for b in range(7):
        z, true = logits[:, b], int(y[b])
        others = [k for k in range(4) if k != true]
        expected = {
            "cross_entropy": (z.exp().sum(-1).log() - z[:, true]).mean(),
            "margin": (z[:, others].amax(-1) - z[:, true]).mean(),
            "mean_logit_margin": z.mean(0)[others].amax() - z.mean(0)[true],
        }[name]
        assert float(OBJECTIVES[name](logits, y, {})[b]) == pytest.approx(float(expected))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_separable_means_the_mean_over_draws(name: str) -> None:
    objective = OBJECTIVES[name]
    logits, y = (
        3 * torch.randn(5, 30, 4, generator=generator(), dtype=torch.float64),
        cases(30, classes=4).labels,
    )
    single = torch.stack([objective(draw[None], y, {}) for draw in logits]).mean(0)
    assert torch.allclose(objective(logits, y, {}), single) == objective.separable


# The engine ------------------------------------------------------------


class _Recording:
    """Hands a defence on, and remembers how many rows each call had and whose they were."""

    def __init__(self, defence: Defence) -> None:
        self.defence, self.calls, self.random = defence, [], defence.random

    def __call__(self, x: Tensor, noise: NoiseStream, gradient: GradientMode = "exact") -> Judged:
        self.calls.append((len(x), noise.index.tolist()))
        return self.defence(x, noise, gradient)


@pytest.mark.parametrize(("batch", "draws"), [(1, 1), (3, 1), (8, 1), (9, 1), (3, 5), (9, 3)])
def test_every_network_call_has_exactly_r_rows(batch: int, draws: int) -> None:
    recording = _Recording(DEFENCES["noisy"]())
    engine, x, y = Engine(recording, ROWS), images(batch), cases(batch).labels
    engine.logits(x, stream(batch), draws)
    engine.answer(x, y, stream(batch), CrossEntropy(), draws)
    expected = -(-batch * draws // ROWS)
    assert [rows for rows, _ in recording.calls] == [ROWS] * (2 * expected)


def test_eot_is_the_mean_of_single_draws() -> None:
    defence, x, y, noise = DEFENCES["noisy"](), images(5), cases(5).labels, stream(5)
    answer = Engine(defence, ROWS).answer(x, y, noise, CrossEntropy(), draws=6)
    losses, gradients, logits = [], [], []
    for draw in range(6):
        leaf = x.clone().requires_grad_()
        single = defence(leaf, noise.repeat(6).select(torch.arange(5) + 5 * draw)).logits
        loss = F.cross_entropy(single, y, reduction="none")
        gradients.append(torch.autograd.grad(loss.sum(), leaf)[0])
        losses.append(loss.detach())
        logits.append(single.detach())
    torch.testing.assert_close(answer.logits, torch.stack(logits))
    torch.testing.assert_close(answer.loss, torch.stack(losses).mean(0))
    torch.testing.assert_close(answer.gradient, torch.stack(gradients).mean(0), rtol=1e-4, atol=1e-7)
    assert not torch.allclose(answer.logits[0], answer.logits[1])
    assert (answer.zero_rows == 0).all()


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("rows", [3, 8, 64])
def test_the_gradient_is_the_whole_expressions(name: str, rows: int) -> None:
    """Also where the objective is no mean over draws, and wherever chunks end."""
    objective, defence = OBJECTIVES[name], DEFENCES["noisy"]().double()
    x, y, noise = images(5, dtype=torch.float64), cases(5).labels, stream(5)

    def folded(x: Tensor) -> Tensor:
        return objective(defence(x.repeat(4, 1, 1, 1), noise.repeat(4)).logits.view(4, 5, -1), y, {})

    answer = Engine(defence, rows).answer(x, y, noise, objective, draws=4)
    leaf = x.clone().requires_grad_()
    loss = folded(leaf)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    torch.testing.assert_close(answer.loss, loss.detach())
    torch.testing.assert_close(answer.gradient, gradient)
    assert relative_error(answer.gradient, central_differences(folded, x)) < 1e-6


@pytest.mark.parametrize("name", OBJECTIVES)
def test_answers_do_not_depend_on_the_batch(name: str) -> None:
    engine, x, y, noise = Engine(DEFENCES["noisy"](), ROWS), images(13), cases(13).labels, stream(13)
    together = engine.answer(x, y, noise, OBJECTIVES[name], draws=16)
    for rows in (torch.arange(5), torch.tensor([12, 3, 7]), torch.tensor([4])):
        part = engine.answer(x[rows], y[rows], noise.select(rows), OBJECTIVES[name], draws=16)
        assert torch.equal(part.gradient, together.gradient[rows])
        assert torch.equal(part.logits, together.logits[:, rows])
        assert torch.equal(part.loss, together.loss[rows])


def test_a_deterministic_defence_is_asked_once() -> None:
    recording = _Recording(DEFENCES["undefended"]())
    logits = Engine(recording, ROWS).logits(images(3), stream(3), draws=10)
    assert logits.shape == (10, 3, 3)
    assert len(recording.calls) == 1


@pytest.mark.parametrize("defence", ["undefended", "noisy", "diffpure"])
@pytest.mark.parametrize("mode", ["exact", "bpda", "detached"])
def test_every_gradient_mode_is_answered(defence: str, mode: GradientMode) -> None:
    engine = Engine(DEFENCES[defence](), ROWS)
    answer = engine.answer(images(3), cases(3).labels, stream(3), CrossEntropy(), 2, mode)
    assert (answer.gradient == 0).all() == (mode == "detached")
    assert (answer.zero_rows == (1 if mode == "detached" else 0)).all()


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="rows is 0"):
        Engine(DEFENCES["undefended"](), 0)


# Deciding ------------------------------------------------------------


@pytest.mark.parametrize("threat", [LINF, ThreatModel("l2", 0.2)], ids=["linf", "l2"])
def test_decided_cases_leave_a_deterministic_defence_and_nothing_changes(threat: ThreatModel) -> None:
    """Fewer network calls than an attack that never looks, and each case's image is what it was alone."""
    chosen, attack = _right(24), PGD(20, selection_draws=1)
    recording = _Recording(DEFENCES["undefended"]())
    together = attack(Engine(recording, rows=4), chosen, threat, stream(24)).images
    never = _Recording(DEFENCES["undefended"]())
    PGD(20, selection="last")(Engine(never, rows=4), chosen, threat, stream(24))
    assert len(recording.calls) < 0.8 * len(never.calls)
    broken = ToyClassifier()(together).argmax(1) != chosen.labels
    assert 0 < int(broken.sum()) < 24, "the test needs cases that leave and cases that stay"
    for b in range(24):
        row = torch.tensor([b])
        alone = attack(Engine(DEFENCES["undefended"](), rows=4), chosen.select(row), threat, stream(24).select(row))
        assert torch.equal(alone.images[0], together[b])


def test_a_random_defence_is_never_decided_by_one_look() -> None:
    """A defence that is wrong in 2.4 % of draws, whatever it sees, would be "broken" by 100 single looks."""
    chosen = cases(40)
    recording: list[int] = []

    class Flickering:
        random = True

        def __call__(self, x: Tensor, noise: NoiseStream, gradient: GradientMode = "exact") -> Judged:
            recording.append(len(x))
            row = (noise.index[:, None] == chosen.index[None]).int().argmax(1)
            right = noise.fork("flicker").uniform((1,)) > 0.024
            signs = torch.where(right, 1.0, -1.0)
            return Judged(signs * F.one_hot(chosen.labels, 3)[row].float() + 1e-3 * x.flatten(1)[:, :3])

    engine = Engine(Flickering(), ROWS)
    found = PGD(100, selection_draws=1)(engine, chosen, LINF, stream(40)).images
    assert sum(recording) >= 100 * 40, "cases left although one look decides nothing"
    logits = engine.logits(found, stream(40).fork("verdict"), 50)
    accuracy = float((logits.argmax(-1) == chosen.labels).float().mean())
    assert abs(accuracy - 0.976) < 4 * (0.024 / 2000) ** 0.5


# Null controls ------------------------------------------------------------

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
    "negligible_pgd": (PGD(10, eot=2, selection_draws=8), ThreatModel("linf", 1e-6)),
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
