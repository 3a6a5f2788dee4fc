"""Attacks: one contract for all of them, PGD against a straight reference, and when a case is decided.

A new attack joins by one row in `ATTACKS`.
"""

from collections.abc import Callable, Collection
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lustral.attacks import (
    APGD,
    FAB,
    MMA,
    PGD,
    Answer,
    APGDTargeted,
    Attack,
    Cases,
    DifferenceOfLogitsRatio,
    Engine,
    Ensemble,
    Judged,
    Margin,
    MeanLogitMargin,
    RandomDirections,
    SelectiveMargin,
    Square,
    State,
)
from lustral.diffusion import EulerMaruyama, VPSchedule
from lustral.evaluation import Defence
from lustral.noise import NoiseStream
from lustral.purifiers import Context, DiffPure, GradientMode, Identity, Purifier, Variant
from lustral.threat import ThreatModel
from tests.contracts import (
    NoisyPurifier,
    Recording,
    SmoothDenoiser,
    ToyClassifier,
    cases,
    generator,
    stream,
)

LINF, L2 = ThreatModel("linf", "16/255"), ThreatModel("l2", 0.3)
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
    "pgd_selective": (lambda: PGD(6, eot=3, objective=SelectiveMargin(0.5), selection_draws=4), LINF),
    "pgd_surrogate": (lambda: PGD(6, eot=2, selection_draws=4, surrogate=NoisyPurifier(0.05)), LINF),
    "pgd_ensemble": (
        lambda: Ensemble([PGD(4, eot=2, selection_draws=4), PGD(4, objective=Margin()), RandomDirections(2, 4)], 4),
        LINF,
    ),
    "apgd": (lambda: APGD(8, eot=3, selection_draws=4), LINF),
    "apgd_l2": (lambda: APGD(8, eot=2, restarts=2, selection_draws=4), L2),
    "apgd_dlr": (lambda: APGD(8, eot=2, objective=DifferenceOfLogitsRatio(), selection_draws=4), LINF),
    "apgd_targeted": (lambda: APGDTargeted(5, 3, eot=2, selection_draws=4), LINF),
    "apgd_targeted_l2": (lambda: APGDTargeted(5, 2, eot=2, selection_draws=4), L2),
    "mma": (lambda: MMA(4, 2, eot=2, selection_draws=4), LINF),
    "mma_l2": (lambda: MMA(4, 2, confidence=0.5, selection_draws=4), L2),
    "fab": (lambda: FAB(6, 2, eot=2, selection_draws=4), LINF),
    "fab_l2": (lambda: FAB(6, 2, eot=2, selection_draws=4), L2),
    "square": (lambda: Square(30, eot=2, selection_draws=4), LINF),
    "square_l2": (lambda: Square(30, restarts=2, selection_draws=4), L2),
    "square_mean_logit": (lambda: Square(60, eot=3, objective=MeanLogitMargin(), selection_draws=4), LINF),
    "ensemble_l2": (lambda: Ensemble([RandomDirections(2, 4), PGD(3, selection_draws=4)], 4), L2),
    "random_directions": (lambda: RandomDirections(4, selection_draws=4), LINF),
    "random_directions_l2": (lambda: RandomDirections(4, selection_draws=4), L2),
}
CLASSES = {"apgd_targeted": 5, "apgd_targeted_l2": 5}
"""Of the toy classifier, for attacks to which 3 are too few."""
DEFENCES: dict[str, Callable[..., Defence]] = {
    "undefended": lambda classes=3: Defence(ToyClassifier(classes), Identity()),
    "noisy": lambda classes=3: Defence(ToyClassifier(classes), NoisyPurifier(0.2)),
    "diffpure": lambda classes=3: Defence(
        ToyClassifier(classes), DiffPure(SmoothDenoiser(VPSchedule()).float(), EulerMaruyama(), 100, 2)
    ),
}
SEARCHES = [name for name in ATTACKS if name.startswith(("pgd", "apgd", "fab", "square"))]
FROM_THE_IMAGE = ("pgd_no_random_start", "fab", "fab_l2")
"""They begin at the image itself, and one that a deterministic defence gets wrong may come back as it is."""
ON_DEFENCES = [(attack, defence) for attack in ATTACKS for defence in ("undefended", "noisy")]
ROWS = 8


def _attacked(attack: str, defence: str, chosen: Cases, seed: int = 0) -> Tensor:
    build, threat = ATTACKS[attack]
    model = DEFENCES[defence](_classes(attack))
    return build()(Engine(model, ROWS), chosen, threat, NoiseStream(seed, chosen.index)).images


def _classes(attack: str) -> int:
    return CLASSES.get(attack, 3)


def _cases(attack: str, batch: int) -> Cases:
    return cases(batch, classes=_classes(attack))


def _right(batch: int, classes: int = 3) -> Cases:
    """Cases that the toy classifier gets right as long as nobody touches them."""
    chosen = cases(batch)
    return replace(chosen, labels=ToyClassifier(classes)(chosen.images).argmax(1))


# The contract ------------------------------------------------------------


@pytest.mark.parametrize(("name", "defence"), [*ON_DEFENCES, ("pgd", "diffpure"), ("pgd_l2", "diffpure")])
def test_every_case_gets_a_perturbed_image_within_its_budget(name: str, defence: str) -> None:
    build, threat = ATTACKS[name]
    chosen, model = _cases(name, 9), DEFENCES[defence](_classes(name))
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
    assert result.statistics.keys() == set(build().measures)
    if name not in FROM_THE_IMAGE or defence != "undefended":
        assert (result.distance > 0).all()
    assert torch.equal(chosen.images, before), "the clean images were changed in place"
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ATTACKS)
def test_a_perturbed_image_is_kept_for_cases_that_hold_out(name: str) -> None:
    """A defence that nothing fools: what comes back is what the attack tried, not the clean image."""
    build, threat = ATTACKS[name]
    chosen, classes = _cases(name, 6), _classes(name)
    right = F.one_hot(chosen.labels, classes).float() * 3

    class Unbroken:
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
            return Judged(right[row] + 0.1 * x.flatten(1)[:, :classes])

        def with_purifier(self, purifier: Purifier | Variant) -> "Unbroken":
            return self

    result = build()(Engine(Unbroken(), ROWS), chosen, threat, stream(6))
    assert (result.distance > 0).all()


@pytest.mark.parametrize(("name", "defence"), ON_DEFENCES)
def test_the_stream_alone_decides(name: str, defence: str) -> None:
    first, again = (_attacked(name, defence, _cases(name, 7)) for _ in range(2))
    assert torch.equal(first, again)
    if defence == "noisy" or name not in FROM_THE_IMAGE:
        assert not torch.equal(first, _attacked(name, defence, _cases(name, 7), seed=1))


@pytest.mark.parametrize(("name", "defence"), [*ON_DEFENCES, ("pgd", "diffpure"), ("pgd_l2", "diffpure")])
def test_an_image_does_not_depend_on_its_batch(name: str, defence: str) -> None:
    """Batches of 7 and 3, shuffled and single: bit for bit the same, as R is."""
    chosen = _cases(name, 10)
    together = _attacked(name, defence, chosen)
    order = torch.randperm(10, generator=generator(3))
    parts = order.split([7, 3])
    assert torch.equal(torch.cat([_attacked(name, defence, chosen.select(part)) for part in parts]), together[order])
    for size in (4, 3):
        parts = torch.arange(10).split(size)  # 4, 4, 2; and 3, 3, 3, 1
        assert torch.equal(torch.cat([_attacked(name, defence, chosen.select(part)) for part in parts]), together), size


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
    chosen, model = _cases(name, 5), DEFENCES[defence](_classes(name))
    result = build()(Engine(model, ROWS), chosen, ThreatModel(threat.norm, 0), stream(5))
    assert torch.equal(result.images, chosen.images)
    assert (result.distance == 0).all()


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_does_more_harm_than_chance(name: str) -> None:
    """On images that the classifier gets right, an attack must beat the control of its audit."""
    chosen = _right(40, _classes(name))
    build, threat = ATTACKS[name]
    engine, accuracy = Engine(DEFENCES["undefended"](_classes(name)), ROWS), {}
    for who, attack in (("search", build()), ("chance", RandomDirections(4))):
        found = attack(engine, chosen, threat, stream(40)).images
        accuracy[who] = float((engine.logits(found, stream(40))[0].argmax(1) == chosen.labels).float().mean())
    assert accuracy["search"] < accuracy["chance"] - 0.15, accuracy


@pytest.mark.parametrize("name", SEARCHES)
def test_nan_in_the_victim_is_reported_and_not_attacked_away(name: str) -> None:
    """One image whose logits are NaN, always; the others must not notice."""
    build, threat = ATTACKS[name]
    chosen = _cases(name, 6)
    bad = int(chosen.index[2])
    inner = DEFENCES["noisy"](_classes(name))

    class Broken:
        random = True

        def __call__(
            self,
            x: Tensor,
            noise: NoiseStream,
            gradient: GradientMode = "exact",
            context: Context | None = None,
            wants: Collection[str] = frozenset(),
        ) -> Judged:
            logits = inner(x, noise, gradient).logits
            return Judged(logits * torch.where(noise.index == bad, torch.nan, 1.0)[:, None])

        def with_purifier(self, purifier: Purifier | Variant) -> Defence:
            return inner.with_purifier(purifier)

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


# Asking ------------------------------------------------------------


class Smoothed(PGD):
    """The mean of the gradients at the query and at a point beside it, on draws of their own."""

    def ask(self, source: Engine, state: State, noise: NoiseStream, aim: Tensor | None) -> Answer:
        answer = super().ask(source, state, noise, aim)
        beside = replace(state, query=(state.query + 0.01).clamp(0, 1))
        other = super().ask(source, beside, noise.fork("beside"), aim)
        return replace(answer, gradient=(answer.gradient + other.gradient) / 2)


def test_an_attack_may_ask_twice_a_step() -> None:
    """Its steps are those of the mean gradient, put together by hand from the engine's answers; what ranks an iterate
    is the loss of the query alone, and everything else is the base's."""
    chosen, recording = cases(9), Recording(DEFENCES["noisy"]())
    engine, attack, steps = Engine(recording, ROWS), Smoothed(4, eot=3, random_start=False, selection="last"), []
    update = attack.update

    def watching(state: State, answer: Answer) -> State:
        steps.append((state, answer, update(state, answer)))
        return steps[-1][2]

    attack.update = watching  # type: ignore[method-assign]
    found = attack(engine, chosen, LINF, stream(9))
    chunks = -(-9 * 3 // ROWS)
    assert len(recording.calls) == 4 * 2 * chunks
    own = stream(9).fork("attack", "Smoothed").at(restart=0).fork("gradient")
    query, objective = chosen.images, attack.objective
    for k, (state, answer, after) in enumerate(steps):
        assert torch.equal(state.query, query)
        draws = own.at(iteration=k)
        here = engine.answer(query, chosen.labels, draws, objective, 3)
        there = engine.answer((query + 0.01).clamp(0, 1), chosen.labels, draws.fork("beside"), objective, 3)
        gradient = (here.gradient + there.gradient) / 2
        assert torch.equal(answer.gradient, gradient)
        assert torch.equal(answer.rank, here.rank)
        query = LINF.project(query + attack.step_length(LINF) * gradient.sign(), chosen.images)
        assert torch.equal(after.query, query)
    assert torch.equal(found.images, LINF.project(query, chosen.images))


@pytest.mark.parametrize("defence", ["undefended", "noisy"])
def test_asking_twice_keeps_an_image_independent_of_its_batch(defence: str) -> None:
    chosen, attack = cases(10), Smoothed(6, eot=2, selection_draws=4)
    together = attack(Engine(DEFENCES[defence](), ROWS), chosen, LINF, stream(10)).images
    for part in torch.randperm(10, generator=generator(3)).split([7, 3]):
        alone = attack(Engine(DEFENCES[defence](), ROWS), chosen.select(part), LINF, stream(10).select(part)).images
        assert torch.equal(alone, together[part])


# Deciding ------------------------------------------------------------


@pytest.mark.parametrize("threat", [LINF, ThreatModel("l2", 0.2)], ids=["linf", "l2"])
def test_decided_cases_leave_a_deterministic_defence_and_nothing_changes(threat: ThreatModel) -> None:
    """Fewer network calls than an attack that never looks, and each case's image is what it was alone."""
    chosen, attack = _right(24), PGD(20, selection_draws=1)
    recording = Recording(DEFENCES["undefended"]())
    together = attack(Engine(recording, rows=4), chosen, threat, stream(24)).images
    never = Recording(DEFENCES["undefended"]())
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

        def __call__(
            self,
            x: Tensor,
            noise: NoiseStream,
            gradient: GradientMode = "exact",
            context: Context | None = None,
            wants: Collection[str] = frozenset(),
        ) -> Judged:
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
