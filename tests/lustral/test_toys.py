"""One toy of each coming method, asked what its seam promises: nothing else in the package knows of them."""

import copy
from collections.abc import Callable, Collection

import pytest
import torch
from torch import Tensor

from lustral.attacks import PGD, Cases, CrossEntropy, Engine, Ensemble, RandomDirections, Square
from lustral.attacks.selection import select
from lustral.defence import Defence
from lustral.describe import describe
from lustral.diffusion import EulerMaruyama, VPSchedule
from lustral.evaluation import Evaluator, Protocol
from lustral.evaluation.records import Record
from lustral.evaluation.selfcheck import self_check
from lustral.evaluation.verdicts import Expected
from lustral.noise import NoiseStream
from lustral.purifiers import (
    AnswerOfInput,
    Context,
    DiffPure,
    DistributionTransfer,
    OutputGuidance,
    Purified,
    Purifier,
    Variant,
)
from lustral.threat import ThreatModel
from tests.contracts import (
    Reveal,
    SeenClassifier,
    SmoothDenoiser,
    ToyClassifier,
    central_differences,
    images,
    relative_error,
    stream,
)
from tests.toys.composed import Composed
from tests.toys.heterogeneous import HeterogeneousNoise
from tests.toys.latents import LatentPurifier
from tests.toys.routed import RoutedGroups
from tests.toys.smoothing import Smoothing
from tests.toys.trades import Trades, TradesPGD

SHAPE = (1, 4, 4)
THREAT = ThreatModel("linf", "24/255")


def _denoiser() -> SmoothDenoiser:
    return SmoothDenoiser(VPSchedule(), SHAPE)


def _masked(sharpness: float | None = 4.0) -> HeterogeneousNoise:
    return HeterogeneousNoise(_denoiser(), EulerMaruyama(), "conv", sharpness=sharpness)


def _transfer() -> DistributionTransfer:
    return DistributionTransfer(_denoiser(), OutputGuidance(AnswerOfInput()), num_steps=3, scale=20.0)


def _latents(distance: str = "l2") -> LatentPurifier:
    return LatentPurifier(_denoiser(), num_steps=3, distance=distance)  # type: ignore[arg-type]


PURIFIERS: dict[str, Callable[[], Purifier]] = {
    "heterogeneous": _masked,
    "heterogeneous_hard": lambda: _masked(None),
    "latents": _latents,
    "latents_l1": lambda: _latents("l1"),
    "smoothing": lambda: Smoothing(0.1),
    "composed": lambda: Composed([_masked(), _latents()]),
    "composed_l1": lambda: Composed([_transfer(), Composed([_masked(None), _latents("l1")])]),
}
HOLDING = [name for name in PURIFIERS if name != "smoothing"]


def _defence(name: str, double: bool = False) -> Defence:
    purifier = PURIFIERS[name]()
    defence = Defence(SeenClassifier(shape=SHAPE), purifier, "vote" if "latents" in name else "mean")
    return defence.eval().requires_grad_(False).to(torch.float64 if double else torch.float32)


@pytest.fixture(params=PURIFIERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def purifier(name: str) -> Purifier:
    return _defence(name).purifier


def _loss(out: Tensor) -> Tensor:
    weights = torch.linspace(-1, 2, out[0].numel(), dtype=out.dtype).view(out.shape[1:])
    return (weights * torch.sin(2 * out)).flatten(1).sum(1)


def _judged(purifier: Purifier, *given, **options):
    with torch.no_grad():
        return purifier(*given, **options)


# The contract of purifiers ------------------------------------------------------------------------------------


def test_shapes_trace_and_determinism(purifier: Purifier) -> None:
    x, state = images(5, SHAPE), torch.get_rng_state()
    purified = _judged(purifier, x, stream(5), wants=purifier.offers)
    assert purified.images.shape[1:] == x.shape
    assert purified.images.isfinite().all()
    assert purified.trace.keys() == purifier.offers.keys()
    assert all(len(values) == 5 and not values.requires_grad for values in purified.trace.values())
    again, other = (_judged(purifier, x, noise) for noise in (stream(5), stream(5, seed=1)))
    assert not again.trace
    assert torch.equal(again.images, purified.images)
    assert not (again.images == other.images).flatten(2).all(-1).any()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("draws", [1, 3])
def test_not_a_bit_depends_on_the_batch(purifier: Purifier, draws: int) -> None:
    x, noise = images(9, SHAPE), stream(9)
    engine = Engine(Reveal(purifier), rows=4)
    together, trace = engine.judge(x, noise, draws, purifier.offers)
    for order in (torch.tensor([4, 0, 8, 2, 6, 1, 7, 3, 5]), torch.tensor([7, 2]), torch.tensor([5])):
        found, parts = engine.judge(x[order], noise.select(order), draws, purifier.offers)
        assert torch.equal(found, together[:, order])
        assert all(torch.equal(parts[key], trace[key][:, order]) for key in trace)


def test_the_exact_gradient_agrees_with_central_differences_or_is_refused(name: str) -> None:
    purifier, x = _defence(name, double=True).purifier, images(2, SHAPE, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    if name.endswith("l1"):
        words = f"{type(purifier).__name__} has no 'exact' gradient; it offers bpda, detached. .*distance: l2"
        with pytest.raises(ValueError, match=words):
            purifier(leaf, stream(2))
        return
    (gradient,) = torch.autograd.grad(_loss(purifier(leaf, stream(2)).images.mean(0)).sum(), leaf)
    assert gradient.flatten(1).abs().amax(1).min() > 1e-3
    expected = central_differences(lambda x: _loss(_judged(purifier, x, stream(2)).images.mean(0)), x)
    assert relative_error(gradient, expected) < 1e-6


def test_the_gradient_does_not_depend_on_the_graph_budget(name: str, purifier: Purifier) -> None:
    if name.endswith("l1"):
        pytest.skip("there is none")
    found = []
    for budget in (0.0, 1e4, 1e18):
        purifier.runtime.graph_budget = budget
        leaf = images(3, SHAPE).requires_grad_()
        found.append(torch.autograd.grad(_loss(purifier(leaf, stream(3)).images.mean(0)).sum(), leaf)[0])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_every_mode_sees_the_very_same_image(purifier: Purifier) -> None:
    x, weights = images(3, SHAPE), images(3, SHAPE, seed=5)
    expected = _judged(purifier, x, stream(3)).images
    for mode in purifier.gradient_modes:
        leaf = x.clone().requires_grad_()
        out = purifier(leaf, stream(3), mode).images
        assert torch.equal(out.detach(), expected), mode
        assert out.requires_grad == (mode != "detached")
        if mode == "bpda":
            (gradient,) = torch.autograd.grad((out * weights / len(out)).sum(), leaf)
            torch.testing.assert_close(gradient, weights, rtol=0, atol=0 if len(out) == 1 else 1e-6)


def test_unknown_names_are_refused_before_any_work(purifier: Purifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(purifier), "complete", lambda *_: pytest.fail("work was done"))
    x = images(2, SHAPE)
    for options, words in (
        ({"context": {"levels": x}}, "no levels that an attack could hand over"),
        ({"wants": ["levels"]}, "The trace of .* has no levels"),
        ({"gradient": "adjoint"}, "has no 'adjoint' gradient"),
    ):
        with pytest.raises(ValueError, match=words):
            purifier(x, stream(2), **{"gradient": "detached", **options})


@pytest.mark.parametrize("name", HOLDING)
def test_what_an_image_decides_can_be_handed_over_whole_or_in_part(name: str, purifier: Purifier) -> None:
    x, other, noise = images(3, SHAPE), images(3, SHAPE, seed=3), stream(3)
    context = _judged(purifier.prepare, x, noise)
    assert context.keys() == purifier.holds
    own = _judged(purifier, x, noise).images
    assert torch.equal(_judged(purifier, x, noise, context=context).images, own)
    for key, value in context.items():
        assert torch.equal(_judged(purifier, x, noise, context={key: value}).images, own)
    for key, value in _judged(purifier.prepare, other, noise.fork("other")).items():
        assert not torch.equal(_judged(purifier, x, noise, context={key: value}).images, own)
        with pytest.raises(ValueError, match=f"The {key} handed to .* a row for each of 3 images"):
            _judged(purifier, x, noise, context={key: value[:1]})


@pytest.mark.parametrize("name", [name for name in PURIFIERS if name != "composed"])  # the nested one is asked
def test_a_whole_evaluation_depends_on_no_neighbour(name: str) -> None:
    """Self-check, attack and verdict with what each toy needs, and for one of them the audit."""
    surrogate = Variant(_CHANGES[name]) if name in _CHANGES else None
    latents = [key for key in PURIFIERS[name]().holds if key.endswith("latents")]
    held = "clean" if name in HOLDING and not latents else "own"
    attack = PGD(2, eot=2, selection_draws=2, surrogate=surrogate, context=held, carry=latents)
    evaluator = Evaluator(_defence(name), attack, THREAT, Protocol(2, audit_images=1), seed=0, rows=4)
    evaluator.cost.peak_memory = 1  # measured in another test: it takes as long as the rest
    cases = Cases(images(3, SHAPE), torch.arange(3), stream(3).index)
    self_check(evaluator.engine, attack, cases, 0)
    audited = torch.tensor([False, False, name == "smoothing"])
    together = evaluator.evaluate(cases, audited)
    assert not any(record.failed for record in together)
    _assert_same_records(evaluator, cases, audited, together, torch.tensor([2, 0]))


def _assert_same_records(
    evaluator: Evaluator, cases: Cases, audited: Tensor, together: list[Record], rows: Tensor
) -> None:
    """``rows`` alone and in another order are recorded as they were together."""
    for record, row in zip(evaluator.evaluate(cases.select(rows), audited[rows]), rows.tolist(), strict=True):
        assert torch.equal(record.image, together[row].image)
        assert torch.equal(record.clean_logits, together[row].clean_logits)
        assert torch.equal(record.adversarial_logits, together[row].adversarial_logits)
        assert record.statistics == together[row].statistics
        assert record.audit == together[row].audit


def test_the_memory_of_a_call_is_measured_where_the_exact_gradient_is_refused() -> None:
    evaluator = Evaluator(_defence("latents_l1"), RandomDirections(1, 1), THREAT, Protocol(1, 0), seed=0, rows=4)
    evaluator.evaluate(Cases(images(1, SHAPE), torch.arange(1), torch.arange(1)), torch.zeros(1, dtype=torch.bool))
    assert evaluator.cost.peak_memory > 0


_CHANGES = {
    "heterogeneous_hard": {"sharpness": 8.0},
    "latents_l1": {"distance": "l2", "num_steps": 2},
    "composed_l1": {"purifiers.1.purifiers.1.distance": "l2"},
}


# Masks, guidance, latents -------------------------------------------------------------------------------------


def test_a_stage_that_the_victim_lacks_is_refused_when_it_is_shown() -> None:
    """Wherever the purifier sits."""
    for build in (_masked, lambda: Composed([Smoothing(0.1), _masked()])):
        with pytest.raises(ValueError, match="ToyClassifier has no stage 'conv'"):
            Defence(ToyClassifier(shape=SHAPE), build())


def test_a_victim_in_training_is_refused_inside_the_unrolled_process() -> None:
    defence = Defence(SeenClassifier(shape=SHAPE), _transfer().float())
    with pytest.raises(ValueError, match="freeze the networks"):
        defence.purifier(images(2, SHAPE).requires_grad_(), stream(2)).images.sum().backward()


def test_the_gradient_of_the_published_distance_would_be_blind() -> None:
    purifier = _latents("l1").float()
    purifier.gradient_modes = ("exact",)
    leaf = images(3, SHAPE).requires_grad_()
    (gradient,) = torch.autograd.grad(purifier(leaf, stream(3)).images.sum(), leaf)
    assert (gradient == 0).all()


def test_an_attack_on_a_blind_gradient_is_refused_and_one_on_its_variant_works() -> None:
    defence = _defence("latents_l1")
    engine, cases = Engine(defence, 4), Cases(images(4, SHAPE), torch.arange(4) % 3, stream(4).index)
    with pytest.raises(ValueError, match=r"no 'exact' gradient.*Variant of changes"):
        PGD(2)(engine, cases, THREAT, stream(4))
    variant = Variant({"distance": "l2", "num_steps": 2})
    result = PGD(2, surrogate=variant, carry=["latents"], eot=2)(engine, cases, THREAT, stream(4))
    assert (result.statistics["zero_gradients"] < 1).all()
    assert (result.distance > 0).all()
    assert defence.with_purifier(variant).purifier.generator is defence.purifier.generator


def test_carried_latents_are_those_of_the_same_image_and_draw() -> None:
    """The second query starts where the first ended, draw by draw, also for rows that are left when others are gone."""
    defence = _defence("latents")
    engine, x, y = Engine(defence, 4), images(3, SHAPE), torch.arange(3)
    first = engine.answer(x, y, stream(3), CrossEntropy(), 2, wants=["latents"])
    carried = {"latents": first.trace["latents"].transpose(0, 1)}
    left = torch.tensor([2, 0])
    second = engine.answer(
        x[left],
        y[left],
        stream(3).select(left),
        CrossEntropy(),
        2,
        context={"latents": carried["latents"][left]},
        wants=["latents"],
    )
    for place, row in enumerate(left.tolist()):
        for draw in range(2):
            start = {"latents": first.trace["latents"][draw, row][None]}
            one = stream(3).repeat(2).select(torch.tensor([3 * draw + row]))
            alone = _judged(defence.purifier, x[row][None], one, context=start, wants=["latents"])
            torch.testing.assert_close(second.trace["latents"][draw, place], alone.trace["latents"][0])
    assert not torch.equal(second.trace["latents"][0, 0], first.trace["latents"][0, 2])


def test_a_vote_is_ranked_by_counts_and_differentiated_by_views() -> None:
    defence = _defence("latents")
    judged = defence(images(4, SHAPE), stream(4))
    assert judged.views is not None
    assert judged.views.shape == (3, 4, 3)
    assert (judged.logits.sum(-1) <= 3).all()
    assert (judged.logits == judged.logits.round()).all()


class Tied(Purifier):
    """Three views that are taken for three classes."""

    random = False

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        return Purified(torch.stack([0.01 * x + k / 3 for k in range(3)]))


class Brightness(ToyClassifier):
    """Class k where the image's mean is near k / 3."""

    def forward(self, x: Tensor) -> Tensor:
        return -(x.flatten(1).mean(1, keepdim=True) - torch.arange(3) / 3).abs()


@pytest.mark.parametrize("label", [0, 2])
def test_views_that_tie_are_wrong_for_the_attack_as_for_the_verdict(label: int) -> None:
    defence = Defence(Brightness(shape=SHAPE), Tied(), "vote").eval().requires_grad_(False)
    engine, x, y = Engine(defence, 2), images(2, SHAPE), torch.full((2,), label)
    answer = engine.answer(x, y, stream(2), CrossEntropy())
    assert torch.equal(answer.logits[0], torch.ones(2, 3))
    assert torch.equal(answer.right_rows, torch.zeros(2))
    assert torch.equal(CrossEntropy().wrongness(answer.logits, y), torch.ones(2, dtype=torch.float64))
    assert torch.equal(Expected(1)(answer.logits, y), torch.zeros(2, dtype=torch.float64))


def test_parts_of_a_composition_are_described_shared_and_changed_by_their_place() -> None:
    defence = _defence("composed")
    own, other = (defence.purifier, Variant({"purifiers.0.t_high": 150.0}).of(defence.purifier))
    assert other.purifiers[0].t_high == 150.0
    assert other.purifiers[0].denoiser is own.purifiers[0].denoiser
    assert describe(own) != describe(other)
    for place in ("purifiers.2.t_high", "purifiers.first.t_high", "purifiers.0.height"):
        with pytest.raises(ValueError, match="has no"):
            Variant({place: 1.0}).of(own)
    with pytest.raises(ValueError, match="network"):
        Variant({"purifiers.0.denoiser.shape": 1.0}).of(own)


def test_a_ragged_neighbour_changes_no_bit_of_a_part() -> None:
    """A part that counts on R rows is given R rows, beside one that takes many more."""
    ragged = DiffPure(_denoiser(), EulerMaruyama(), 50, 2)
    ragged.ragged = True
    defence = Defence(SeenClassifier(shape=SHAPE), Composed([ragged, _masked()])).eval().requires_grad_(False).float()
    engine, x, noise = Engine(defence, 4), images(9, SHAPE), stream(9)
    together = engine.answer(x, torch.arange(9) % 3, noise, CrossEntropy(), 2)
    part = torch.tensor([8, 1, 4])
    found = engine.answer(x[part], part % 3, noise.select(part), CrossEntropy(), 2)
    assert torch.equal(found.logits, together.logits[:, part])
    assert torch.equal(found.gradient, together.gradient[part])


# Groups -------------------------------------------------------------------------------------------------------


def _groups(count: int, std: float) -> tuple[Defence, Cases]:
    """Groups of 7 of which some are routed, half of each free; labels that a deterministic defence
    gets right."""
    x = images(7 * count, SHAPE)
    x[7:14] = 0.5 + 0.1 * (x[7:14] - 0.5)  # the second group is smooth, and passes
    defence = Defence(SeenClassifier(shape=SHAPE), RoutedGroups(_denoiser(), 0.01, std))
    defence = defence.eval().requires_grad_(False).float()
    y = Engine(defence, 4).logits(x, stream(len(x)).fork("labels"))[0].argmax(1)
    return defence, Cases(x, y, stream(len(x)).index, torch.arange(len(x)) % 7 < 4)


def _of(groups: list[int]) -> Tensor:
    return (torch.tensor(groups)[:, None] * 7 + torch.arange(7)).flatten()


GROUP_ATTACKS = {
    "pgd": PGD(4, eot=2, selection_draws=2),
    "random_directions": RandomDirections(3, 2),
    "square": Square(6, selection_draws=2),
    "ensemble": Ensemble([PGD(2, selection_draws=2), RandomDirections(2, 2)], 2),
}


@pytest.mark.parametrize("attack", GROUP_ATTACKS)
@pytest.mark.parametrize("std", [0.0, 0.05])
def test_groups_are_attacked_whole_and_alone(attack: str, std: float) -> None:
    defence, cases = _groups(5, std)
    engine, run = Engine(defence, 4), GROUP_ATTACKS[attack]
    whole = {tuple(group) for group in cases.index.view(-1, 7).tolist()}
    seen: list[tuple[int, ...]] = []
    defence.purifier.register_forward_pre_hook(
        lambda _, given: seen.extend(map(tuple, given[1].index.view(-1, 7).tolist()))
    )
    together = run(engine, cases, THREAT, stream(len(cases)))
    assert torch.equal(together.images[~cases.free], cases.images[~cases.free])
    assert (together.distance[cases.free].view(5, -1) > 0).any(1).all()
    for groups in ([4, 2, 0, 1, 3], [3, 1], [2]):
        rows = _of(groups)
        part = run(Engine(defence, 4), cases.select(rows), THREAT, stream(len(cases)).select(rows))
        assert torch.equal(part.images, together.images[rows])
        assert all(torch.equal(part.statistics[key], together.statistics[key][rows]) for key in part.statistics)
    assert set(seen) == whole, "whoever leaves early takes his group along"
    if attack == "ensemble":
        winner = together.statistics["winner"].view(5, 7)
        assert (winner == winner[:, :1]).all()


@pytest.mark.parametrize("std", [0.0, 0.05])
def test_the_gradient_of_a_group_runs_through_its_statistic(std: float) -> None:
    defence, cases = _groups(3, std)
    defence = copy.deepcopy(defence).double()
    x, y, engine = cases.images.double(), cases.labels, Engine(defence, 4)
    routed = engine.judge(x, stream(21), wants=["statistic"])[1]["statistic"][0] > 0.01
    assert routed.any()
    assert not routed.all()
    answer = engine.answer(x, y, stream(21), CrossEntropy(), 2)

    def loss(x: Tensor) -> Tensor:
        each = CrossEntropy()(engine.logits(x, stream(21), 2), y).view(3, 7)
        return each.sum(1, keepdim=True).expand(3, 7).flatten()

    expected = torch.zeros_like(x)
    for place in (0, 6):  # one image of each group at a time: they share a loss
        rows = torch.arange(3) * 7 + place
        moved = central_differences(lambda part, rows=rows: loss(x.index_copy(0, rows, part))[rows], x[rows])
        expected[rows] = moved
    looked = torch.isin(torch.arange(21) % 7, torch.tensor([0, 6]))
    assert relative_error(answer.gradient[looked], expected[looked]) < 1e-6
    aim = torch.arange(21) % 7 == 0
    alone = engine.answer(x, y, stream(21), CrossEntropy(), 2, aim=aim).gradient.flatten(1).abs().amax(1)
    assert ((alone > 0) == (routed | aim)).all(), "another image of the group moves the one that is aimed at"


def test_a_whole_evaluation_of_groups() -> None:
    defence, cases = _groups(3, 0.05)
    attack = Ensemble([PGD(2, selection_draws=2), Square(4, selection_draws=2)], 2)
    evaluator = Evaluator(defence, attack, THREAT, Protocol(2, audit_images=7), seed=0, rows=4)
    self_check(evaluator.engine, attack, cases, 0)
    audited = torch.arange(21) // 7 == 1
    together = evaluator.evaluate(cases, audited)
    _assert_same_records(evaluator, cases, audited, together, _of([2, 1]))
    found = torch.stack([record.image for record in together])
    assert torch.equal(found[~cases.free], cases.images[~cases.free])
    assert together[7].audit
    assert not together[0].audit


@pytest.mark.parametrize("std", [0.0, 0.05])
def test_of_candidates_groups_are_chosen_whole(std: float) -> None:
    defence, cases = _groups(4, std)
    tried = [cases.confined(THREAT.random_point(cases.images, stream(28, seed))) for seed in range(4)]
    chosen = select(Engine(defence, 4), tried, cases, stream(28), 3, PGD(1).score)
    winner = chosen.winner.view(4, 7)
    assert (winner == winner[:, :1]).all()
    assert len(winner.unique()) > 1
    assert torch.equal(chosen.images, torch.stack(tried)[chosen.winner, torch.arange(28)])


def test_incomplete_groups_are_refused() -> None:
    defence, cases = _groups(2, 0.0)
    with pytest.raises(ValueError, match="give 7 or 14"):
        Engine(defence, 4).logits(cases.images[:9], stream(9))
    with pytest.raises(ValueError, match="hand over a multiple of 7"):
        defence(cases.images[:9], stream(9))


# Very many draws ----------------------------------------------------------------------------------------------


def test_seventy_thousand_draws_are_counted_as_the_normal_distribution_says() -> None:
    classifier = ToyClassifier(2, (1, 1, 1))
    with torch.no_grad():  # logits x and 0.5: the share of class 0 is Phi((x - 0.5) / std)
        classifier.conv.weight.zero_()
        classifier.conv.weight[0, 0, 1, 1] = 1e-3
        classifier.conv.bias.zero_()
        classifier.head.weight.zero_()
        classifier.head.weight[0, 0] = 1.0
        classifier.head.bias.zero_()
    defence = Defence(classifier.eval(), Smoothing(0.25)).requires_grad_(False)
    x, draws = torch.tensor([0.4, 0.5, 0.8])[:, None, None, None], 70_000
    found = [Engine(defence, rows).counts(x, stream(3), draws) for rows in (1024, 500)]
    assert torch.equal(found[0], found[1])
    assert (found[0].sum(1) == draws).all()
    share = torch.special.ndtr((x.double().flatten() - 0.5) / 0.25)
    error = (draws * share * (1 - share)).sqrt()
    assert ((found[0][:, 0] - draws * share).abs() < 4 * error).all()
    late = Engine(defence, 512).judge(x, stream(3), 1000, first=2**16 - 500)[0]
    assert late.flatten(1).unique(dim=0).shape[0] == 1000, "draws beyond 65,536 are others"


# Training -----------------------------------------------------------------------------------------------------


def test_a_trades_step_trains_the_classifier_that_it_attacks() -> None:
    classifier = ToyClassifier(shape=SHAPE).train()
    classifier.head.eval()
    modes = {name: module.training for name, module in classifier.named_modules()}
    x, y, calls = images(6, SHAPE), torch.arange(6) % 3, []
    handle = classifier.register_forward_hook(lambda *_: calls.append(1))
    loss = Trades(TradesPGD(), THREAT)(classifier, x, y, stream(6))
    handle.remove()
    assert loss.shape == (6,)
    assert len(calls) == 1 + 3 + 2, "the clean answer once, a call a step, and the two that are trained on"
    assert all(parameter.requires_grad and parameter.grad is None for parameter in classifier.parameters())
    assert {name: module.training for name, module in classifier.named_modules()} == modes
    assert (loss > Trades(TradesPGD(), THREAT, 0.0)(classifier, x, y, stream(6))).all()
    loss.mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in classifier.parameters())
    before = loss.detach().mean()
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter -= 1e-3 * parameter.grad
    assert Trades(TradesPGD(), THREAT)(classifier, x, y, stream(6)).mean() < before
