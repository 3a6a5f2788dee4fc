"""Objectives that follow the purifier from inside: its deviation from the forward process, and SSNI's score."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lustral.attacks import (
    PGD,
    Answer,
    CrossEntropy,
    Deviation,
    Engine,
    Margin,
    MeanLogitMargin,
    Objective,
    State,
    WithScore,
)
from lustral.diffusion import DDIM, EulerMaruyama, LinearSchedule, VPSchedule
from lustral.diffusion.perturbation import EPS
from lustral.evaluation import Defence
from lustral.noise import NoiseStream
from lustral.purifiers import (
    GDMP,
    GNSP,
    SSNI,
    DiffPure,
    GradientMode,
    MSEGuidance,
    RoundPurifier,
    SigmoidLevels,
    Variant,
)
from lustral.threat import ThreatModel
from tests.contracts import (
    SmoothDenoiser,
    ToyClassifier,
    cases,
    central_differences,
    images,
    relative_error,
    right_cases,
    stored_scores,
    stream,
    toy_evaluator,
)

LINF = ThreatModel("linf", "24/255")


def _ssni(purifier: RoundPurifier, rounding: bool = False) -> SSNI:
    """Levels between a third and all of t*, well apart for different images."""
    score = EPS(3, 10.0)
    reference = stored_scores(purifier.denoiser, score, [280.0, 310.0, 400.0])
    return SSNI(purifier, SigmoidLevels(5.0, 40.0), reference, score, rounding)


def _diffpure() -> DiffPure:
    return DiffPure(SmoothDenoiser(VPSchedule()), EulerMaruyama(), 200, 4)


def _gnsp(layout: str = "clock") -> GNSP:
    return GNSP(SmoothDenoiser(VPSchedule()), [(60, 2), (120, 3)], layout=layout)  # type: ignore[arg-type]


def _gdmp() -> GDMP:
    denoiser = SmoothDenoiser(VPSchedule())
    return GDMP(denoiser, MSEGuidance("noised", 1), 60, 3, 2, 20.0, "24/255")


PURIFIERS: dict[str, Callable[[], RoundPurifier | SSNI]] = {
    "diffpure": _diffpure,
    "diffpure_table": lambda: DiffPure(SmoothDenoiser(LinearSchedule()), DDIM(1.0), 100, 4),
    "gnsp": _gnsp,
    "gdmp": _gdmp,
    "ssni_diffpure": lambda: _ssni(_diffpure()),
    "ssni_gnsp": lambda: _ssni(_gnsp()),
    "ssni_gnsp_own_grid": lambda: _ssni(_gnsp("own")),
    "ssni_gdmp": lambda: _ssni(_gdmp()),
    "ssni_rounded": lambda: _ssni(_diffpure(), rounding=True),
}


@pytest.fixture(params=PURIFIERS)
def purifier(request: pytest.FixtureRequest) -> RoundPurifier | SSNI:
    return PURIFIERS[request.param]()


def _deviation(purifier: RoundPurifier | SSNI, x: Tensor, noise: NoiseStream) -> Tensor:
    return purifier(x, noise, wants=["deviation"]).trace["deviation"]


# The deviation ------------------------------------------------------------


def test_the_deviation_is_the_distance_to_the_forward_process() -> None:
    """Step by step, with nothing but the solver and the schedule."""
    purifier = DiffPure(SmoothDenoiser(VPSchedule()), EulerMaruyama(), 200, 4)
    x, noise, schedule = images(3, dtype=torch.float64), stream(3), purifier.denoiser.schedule
    grid = schedule.grid(200, 4)
    z = noise.fork("forward").normal((1, 4, 4), dtype=torch.float64)
    x_0 = 2 * x - 1
    x_t, expected = schedule.alpha(grid[0]) * x_0 + schedule.sigma(grid[0]) * z, torch.zeros(3, dtype=torch.float64)
    for i in range(4):
        drawn = noise.fork("reverse").normal((1, 4, 4), step=i, dtype=torch.float64)
        x_t = purifier.solver.step(purifier.denoiser, x_t, grid[i], grid[i + 1], drawn)
        forward = schedule.alpha(grid[i + 1]) * x_0 + schedule.sigma(grid[i + 1]) * z
        expected += ((x_t - forward) ** 2).flatten(1).mean(1) / 4
    assert expected.min() > 0.01
    torch.testing.assert_close(_deviation(purifier, x, noise), expected)


def test_every_row_is_measured_as_if_it_were_alone(purifier: RoundPurifier | SSNI) -> None:
    """Rows of different levels take different steps; none of them may count for a neighbour."""
    x, noise = images(5, dtype=torch.float64), stream(5)
    together = _deviation(purifier, x, noise)
    if isinstance(purifier, SSNI):
        levels = purifier(x, noise, wants=["levels", "deviation"]).trace["levels"]
        assert levels[:, 0].amax() > 1.5 * levels[:, 0].amin(), "the test needs levels that differ"
    assert together.shape == (5,)
    assert len(together.unique()) == 5
    for b in range(5):
        row = torch.tensor([b])
        torch.testing.assert_close(_deviation(purifier, x[row], noise.select(row)), together[row])


def test_measuring_changes_no_image_and_is_not_done_unasked(purifier: RoundPurifier | SSNI) -> None:
    x, noise = images(4).float(), stream(4)
    single = copy.deepcopy(purifier).float()
    plain = single(x, noise)
    assert "deviation" not in plain.trace
    assert torch.equal(single(x, noise, wants=["deviation"]).images, plain.images)
    defence = Defence(ToyClassifier(), single)
    answer = Engine(defence, 4).answer(x, cases(4).labels, noise, Deviation(CrossEntropy(), 1.0), 2)
    assert "deviation" not in single(x, noise).trace, "the query left its wish behind"
    without = Engine(defence, 4).answer(x, cases(4).labels, noise, CrossEntropy(), 2)
    assert torch.equal(answer.logits, without.logits)
    assert not torch.allclose(answer.gradient, without.gradient, rtol=1e-2)


def test_its_gradient_agrees_with_central_differences(purifier: RoundPurifier | SSNI) -> None:
    x, noise = images(2, dtype=torch.float64), stream(2)

    def deviation(x: Tensor) -> Tensor:
        return _deviation(purifier, x, noise)

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(deviation(leaf).sum(), leaf)
    assert gradient.flatten(1).abs().amax(1).min() > 1e-3
    assert relative_error(gradient, central_differences(deviation, x)) < 1e-6


@pytest.mark.parametrize("objective", [Deviation(CrossEntropy(), 3.0), Deviation(MeanLogitMargin(), 3.0)])
def test_the_graph_budget_changes_no_bit_of_it(purifier: RoundPurifier | SSNI, objective: Objective) -> None:
    found, single = [], copy.deepcopy(purifier).float()
    for budget in (0.0, 1e4, 1e18):
        engine = Engine(Defence(ToyClassifier(), single), 4, graph_budget=budget)
        found.append(engine.answer(images(3), cases(3).labels, stream(3), objective, 3))
    for other in found[1:]:
        assert torch.equal(other.gradient, found[0].gradient)
        assert torch.equal(other.loss, found[0].loss)


def test_not_a_bit_of_it_depends_on_the_batch(purifier: RoundPurifier | SSNI) -> None:
    single = copy.deepcopy(purifier).float()
    engine, objective = Engine(Defence(ToyClassifier(), single), 4), Deviation(Margin(), 3.0)
    x, y, noise = images(9), cases(9).labels, stream(9)
    together = engine.answer(x, y, noise, objective, 3)
    for rows in (torch.tensor([4, 0, 8, 2, 6, 1, 7, 3, 5]), torch.tensor([7, 2]), torch.tensor([5])):
        part = engine.answer(x[rows], y[rows], noise.select(rows), objective, 3)
        assert torch.equal(part.gradient, together.gradient[rows])
        assert torch.equal(part.loss, together.loss[rows])


def test_an_attack_raises_the_deviation_that_it_follows() -> None:
    chosen, purifier = cases(8), _diffpure().float()
    threat, engine = ThreatModel("linf", "24/255"), Engine(Defence(ToyClassifier(), purifier), 8)
    found = {}
    for weight in (-1e3, 1e3):
        attack = PGD(6, eot=4, objective=Deviation(CrossEntropy(), weight), selection="last")
        x = attack(engine, chosen, threat, stream(8)).images
        draws = stream(8).fork("verdict").repeat(16)
        found[weight] = _deviation(purifier, x.repeat(16, 1, 1, 1), draws).view(16, 8).mean(0)
    assert (found[1e3] > found[-1e3]).all()


# SSNI's score ------------------------------------------------------------

LOOKS = {
    "exact": None,
    "smooth": Variant({"rounding": False}),
    "straight_through": Variant({"rounding": "straight_through"}),
}


@pytest.mark.parametrize(
    ("mode", "rounding"), [("exact", False), ("smooth", True), ("smooth", False), ("straight_through", True)]
)
def test_an_attack_moves_the_levels_where_it_wants_them(mode: str, rounding: bool) -> None:
    chosen, purifier = cases(8), _ssni(_diffpure().float(), rounding)
    threat, engine = ThreatModel("linf", "24/255"), Engine(Defence(ToyClassifier(), purifier), 8)
    found = []
    for weight in (-1e3, 1e3):
        attack = PGD(6, eot=4, objective=WithScore(CrossEntropy(), weight), surrogate=LOOKS[mode], selection="last")
        found.append(attack(engine, chosen, threat, stream(8)).images)
    draws = stream(8).fork("verdict").repeat(16)
    low, clean, high = (
        purifier(x.repeat(16, 1, 1, 1), draws, wants=["levels"]).trace["levels"].view(16, 8).mean(0)
        for x in (found[0], chosen.images, found[1])
    )
    assert (low < clean - 1).all()
    assert (high > clean + 1).all()


def test_rounded_levels_are_blind_to_the_exact_gradient_and_that_is_refused() -> None:
    engine = Engine(Defence(ToyClassifier(), _ssni(_diffpure().float(), rounding=True)), 8)
    attack = PGD(2, objective=WithScore(CrossEntropy(), -1.0), selection_draws=2)
    with pytest.raises(ValueError, match=r"WithScore follows the score, .* constant: attack a variant"):
        attack(engine, cases(3), ThreatModel("linf", 0.1), stream(3))


@pytest.mark.parametrize("objective", [WithScore(CrossEntropy(), 1.0), Deviation(WithScore(Margin(), 1.0), 1.0)])
@pytest.mark.parametrize("mode", ["bpda", "detached", "frozen"])
def test_modes_without_a_score_are_refused_at_construction(objective: Objective, mode: GradientMode) -> None:
    """ "frozen" is none any more: what the clean image decides is held with `context`."""
    unseen = r"follows the score.*, which the gradient '\w+' does not see: attack\.gradient may be exact"
    unknown = "gradient is 'frozen'; it may be exact, bpda, detached"
    with pytest.raises(ValueError, match=unknown if mode == "frozen" else unseen):
        PGD(2, objective=objective, gradient=mode)


def test_the_deviation_has_a_gradient_at_frozen_levels_and_none_through_bpda() -> None:
    objective, chosen, purifier = Deviation(CrossEntropy(), 1e3), cases(4), _ssni(_diffpure().float(), rounding=True)
    engine = Engine(Defence(ToyClassifier(), purifier), 4)
    found = [
        PGD(3, objective=each, context="clean", selection="last")(engine, chosen, LINF, stream(4))
        for each in (objective, CrossEntropy())
    ]
    assert not found[0].failed.any()
    assert (found[0].images != found[1].images).flatten(1).any(1).all()
    with pytest.raises(ValueError, match="follows the deviation, which the gradient 'bpda' does not see"):
        PGD(2, objective=Deviation(CrossEntropy(), 1.0), gradient="bpda")


def test_a_query_and_its_loss_see_the_same_levels() -> None:
    """An objective that is no mean over draws looks twice; both times through the mode that was asked for."""
    purifier = _ssni(_diffpure(), rounding=True)
    defence, objective = Defence(ToyClassifier().double(), purifier), MeanLogitMargin()
    x, y = images(3, dtype=torch.float64), cases(3).labels
    clean = images(3, seed=4, dtype=torch.float64)
    for surrogate, held in ((LOOKS["smooth"], None), (None, clean)):
        answer = Engine(defence, 4).through(surrogate).answer(x, y, stream(3), objective, 3, clean=held)
        torch.testing.assert_close(answer.loss, objective(answer.logits, y, {}), rtol=0, atol=0)


# What the clean image decides ------------------------------------------------------------


@pytest.mark.parametrize("objective", [CrossEntropy(), MeanLogitMargin()], ids=["mean", "of the mean"])
def test_a_held_context_is_the_clean_images_draw_by_draw(objective: Objective) -> None:
    """Every draw purifies the query at the levels that the clean image has with that very draw's noise: put together by
    hand, one image and draw after the other."""
    purifier = _ssni(_diffpure(), rounding=True)
    classifier = ToyClassifier().double().requires_grad_(False)
    clean, x, y, noise = (
        images(3, dtype=torch.float64),
        images(3, seed=4, dtype=torch.float64),
        cases(3).labels,
        stream(3),
    )
    answer = Engine(Defence(classifier, purifier), 4).answer(x, y, noise, objective, 5, clean=clean, wants=["levels"])
    leaf, draws = x.clone().requires_grad_(), noise.repeat(5)
    levels, logits = [], []
    for row in range(15):
        b, own = row % 3, draws.select(torch.tensor([row]))
        score = purifier.score(clean[b, None], own)
        level = purifier.levels(score, 200.0, purifier.reference.scores, own).round()[:, None]
        levels.append(level)
        logits.append(classifier(purifier.purifier.walk(leaf[b, None], level, own, ()).images[0]))
    held = torch.cat(levels).view(5, 3, 1)
    assert torch.equal(answer.trace["levels"], held)
    assert (held.amax(0) > held.amin(0)).all(), "each draw has its own level"
    own_levels = purifier(x.repeat(5, 1, 1, 1), draws, wants=["levels"]).trace["levels"].view(5, 3, 1)
    assert not torch.equal(own_levels, held)
    loss = objective(torch.stack(logits).view(5, 3, -1), y)
    torch.testing.assert_close(answer.loss, loss.detach())
    torch.testing.assert_close(answer.gradient, torch.autograd.grad(loss.sum(), leaf)[0])


def test_an_attack_that_holds_the_clean_context_asks_for_nothing_else() -> None:
    """Each of its queries is the engine's answer with the clean images, on the iteration's own draws."""
    chosen, engine = cases(5), Engine(Defence(ToyClassifier(), _ssni(_diffpure().float(), rounding=True)), 8)
    attack, asked = PGD(3, eot=3, context="clean", selection_draws=2), []
    update = attack.update

    def recording(state: State, answer: Answer) -> State:
        asked.append((state.query, answer))
        return update(state, answer)

    attack.update = recording  # type: ignore[method-assign]
    attack(engine, chosen, LINF, stream(5))
    own = stream(5).fork("attack", "PGD").at(restart=0).fork("gradient")
    for k, (query, answer) in enumerate(asked):
        draws = own.at(iteration=k)
        held = engine.answer(query, chosen.labels, draws, CrossEntropy(), 3, clean=chosen.images)
        assert torch.equal(answer.gradient, held.gradient)
        free = engine.answer(query, chosen.labels, draws, CrossEntropy(), 3)
        assert not torch.equal(free.gradient, held.gradient)
    assert len(asked) == 3


def test_a_score_that_is_held_cannot_be_followed() -> None:
    engine = Engine(Defence(ToyClassifier(), _ssni(_diffpure().float())), 8)
    PGD(1, objective=WithScore(CrossEntropy(), -1.0), selection_draws=1)(engine, cases(2), LINF, stream(2))
    attack = PGD(1, objective=WithScore(CrossEntropy(), -1.0), context="clean")
    with pytest.raises(ValueError, match=r"WithScore follows the score, which attack\.context clean holds fixed"):
        attack(engine, cases(2), LINF, stream(2))


def test_what_cannot_be_held_is_refused_by_the_source() -> None:
    """Before any work: a context that the purifier has not, and one that the trace does not give."""
    plain, levelled = (Engine(Defence(ToyClassifier(), each), 8) for each in (_diffpure(), _ssni(_diffpure())))
    with pytest.raises(ValueError, match=r"attack\.context is clean, but nothing that DiffPure decides"):
        PGD(1, context="clean").source(plain)
    assert PGD(1, context="clean").source(levelled) is levelled
    with pytest.raises(ValueError, match="SSNI has no latents that an attack could hand over; it holds levels, score"):
        PGD(1, carry=["latents"]).source(levelled)
    with pytest.raises(ValueError, match=r"The trace of DiffPure has no score; it offers noised .*deviation"):
        PGD(1, objective=WithScore(CrossEntropy(), 1.0)).source(plain)
    with pytest.raises(ValueError, match=r"carry is 'levels'; it is a list of names: \[levels\]"):
        PGD(1, carry="levels")
    with pytest.raises(ValueError, match="context is 'frozen'; it may be own, clean"):
        PGD(1, context="frozen")  # type: ignore[arg-type]


def test_what_is_carried_is_what_the_last_step_found_draw_by_draw() -> None:
    """From the second query on, levels are those of the first one's own draws, padding or not."""
    chosen, purifier = cases(3), _ssni(_diffpure().float(), rounding=True)
    engine, attack, answers = Engine(Defence(ToyClassifier(), purifier), 4), PGD(3, eot=3, carry=["levels"]), []
    update = attack.update

    def recording(state: State, answer: Answer) -> State:
        answers.append((state, answer))
        return update(state, answer)

    attack.update = recording  # type: ignore[method-assign]
    attack(engine, chosen, LINF, stream(3))
    (first, answer), *others = answers
    assert first.context == {}
    levels = answer.trace["levels"]
    assert levels.shape == (3, 3, 1)
    assert len(levels.unique()) > 3
    for state, later in others:
        assert torch.equal(state.context["levels"], levels.transpose(0, 1))
        assert torch.equal(later.trace["levels"], levels)


def test_iterates_are_ranked_by_the_harm_they_do_and_not_by_what_steers() -> None:
    """A term so heavy that it alone decides where the attack goes: the iterate kept is still the most harmful."""
    chosen, threat = cases(24), ThreatModel("linf", "48/255")
    engine = Engine(Defence(ToyClassifier(), _diffpure().float()), 24)
    attack = PGD(5, eot=2, objective=Deviation(CrossEntropy(), 1e4), finalists=1, selection_draws=8)
    seen, update = [], attack.update

    def recording(state: State, answer: Answer) -> State:
        after = update(state, answer)
        seen.append((state.query, answer.rank, answer.loss, after.query))
        return after

    attack.update = recording  # type: ignore[method-assign]
    found = attack(engine, chosen, threat, stream(24)).images
    ranks, losses = (torch.stack([step[k] for step in seen]) for k in (1, 2))
    kept, last = torch.stack([step[0] for step in seen])[ranks.argmax(0), torch.arange(24)], seen[-1][3]
    is_kept, is_last = ((found - images).abs().flatten(1).amax(1) < 1e-6 for images in (kept, last))
    assert (is_kept | is_last).all()
    assert (is_kept & (ranks.argmax(0) != losses.argmax(0))).any()


def test_the_audit_of_a_steered_attack_runs_bpda_without_what_steers() -> None:
    """Behind an identity backward there is nothing to follow, and the control must not be refused."""
    attack = PGD(2, eot=2, objective=Deviation(CrossEntropy(), 1.0), selection_draws=2)
    evaluator = toy_evaluator(_diffpure().float(), attack, audit_images=2)
    records = evaluator.evaluate(right_cases(2), torch.ones(2, dtype=torch.bool))
    assert {"bpda", "double_eot", "double_eps", "large_eps", "known_noise"} <= records[0].audit.keys()
    assert evaluator.decides()["attack"]["objective"]["objective"]["class"] == "CrossEntropy"


def test_the_audit_looks_at_the_defence_itself_besides_what_an_attack_holds() -> None:
    """The defence's answers to the direct probes have levels of their own; known noise is known to the clean image."""
    attack = PGD(2, eot=2, context="clean", selection_draws=2)
    evaluator = toy_evaluator(_ssni(_diffpure().float()), attack, audit_images=2)
    records = evaluator.evaluate(right_cases(2), torch.ones(2, dtype=torch.bool))
    assert not any(record.failed for record in records)
    assert {"house", "bpda", "double_eot", "double_eps", "large_eps", "known_noise"} <= records[0].audit.keys()
    assert records[0].audit_steps.keys() == {"predicted", "actual"}
    direct = {probe.name: probe.attack for probe in evaluator.plan().probes}["double_eot"]
    assert isinstance(direct, PGD)
    assert direct.sees_the_defence
    assert (direct.eot, attack.context) == (4, "clean")
