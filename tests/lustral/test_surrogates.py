"""Surrogates: gradients are those of another purifier, selection and verdict the defence's, and the card says so."""

import json
from collections.abc import Callable, Collection

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lustral.attacks import PGD, Answer, CrossEntropy, Engine, Ensemble, Judged, RandomDirections, State
from lustral.diffusion import EulerMaruyama, VPSchedule
from lustral.evaluation import Defence, Fingerprint, Record, make_card
from lustral.evaluation.audit import KnownNoise
from lustral.noise import NoiseStream
from lustral.purifiers import Context, DiffPure, GradientMode, Identity, Purified, Purifier, Variant
from lustral.rows import Runtime
from lustral.threat import ThreatModel
from tests.contracts import (
    NoisyPurifier,
    SmoothDenoiser,
    ToyClassifier,
    cases,
    images,
    right_cases,
    stream,
    toy_evaluator,
)

LINF = ThreatModel("linf", "32/255")


class Watched(Purifier):
    """Shows ``map`` of the image, and counts the rows that were asked for with and without a gradient."""

    random = False

    def __init__(self, map: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.map, self.asked = map, {True: 0, False: 0}

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        self.asked[x.requires_grad] += len(x)
        return Purified(self.map(x)[None])


def _followed(attack: PGD) -> list[tuple[Tensor, Tensor]]:
    """Collects the queries of ``attack`` and the gradients it got, as it goes on."""
    found, update = [], attack.update

    def recording(state: State, answer: Answer) -> State:
        found.append((state.query, answer.gradient))
        return update(state, answer)

    attack.update = recording  # type: ignore[method-assign]
    return found


def test_gradients_are_the_surrogates_and_selection_is_the_defences() -> None:
    classifier, chosen = ToyClassifier(), right_cases(12)
    real, surrogate = Watched(lambda x: x), Watched(lambda x: 0.3 + 0.5 * x.flip(-1))
    attack = PGD(6, random_start=False, finalists=6, selection_draws=1, surrogate=surrogate)
    followed = _followed(attack)
    found = attack(Engine(Defence(classifier, real), 12), chosen, LINF, stream(12)).images
    assert len(followed) == 6
    assert real.asked == {True: 0, False: 12 * (6 + 1 + 2)}, "selection is the defence's, and nothing else"
    assert surrogate.asked == {True: 12 * 6, False: 0}
    for query, gradient in followed:
        leaf = query.clone().requires_grad_()
        loss = F.cross_entropy(classifier(surrogate.map(leaf)), chosen.labels, reduction="sum")
        torch.testing.assert_close(gradient, torch.autograd.grad(loss, leaf)[0])
    last = LINF.project(followed[-1][0] + attack.step_length(LINF) * followed[-1][1].sign(), chosen.images)
    candidates = torch.stack([*(query for query, _ in followed), last])
    logits = classifier(candidates.flatten(0, 1)).view(7, 12, -1)
    wrong = (logits.argmax(-1) != chosen.labels).double()
    loss = CrossEntropy()(logits.flatten(0, 1)[None], chosen.labels.repeat(7), {}).view(7, 12)
    best = (wrong * 1000 + loss).argmax(0)
    assert len(best.unique()) > 1, "the test needs winners that are not all the last"
    torch.testing.assert_close(found, candidates[best, torch.arange(12)], rtol=0, atol=1e-6)


def test_a_deterministic_defence_is_not_decided_by_its_surrogate() -> None:
    """A surrogate that is wrong on everything: an attack that believed it would stop at once."""
    classifier, chosen = ToyClassifier(), right_cases(10)
    other = {int(label): chosen.images[chosen.labels != label][:1] for label in chosen.labels.unique()}
    wrong = torch.cat([other[int(label)] for label in chosen.labels])
    surrogate = Watched(lambda x: wrong[torch.arange(len(x)) % 10] + 1e-3 * x)
    real = Watched(lambda x: x)
    attack = PGD(12, surrogate=surrogate, selection_draws=1)
    attack(Engine(Defence(classifier, real), 10), chosen, ThreatModel("linf", "1/255"), stream(10))
    assert surrogate.asked[True] == 12 * 10
    assert PGD(2).sees_the_defence
    for options in ({"context": "clean"}, {"surrogate": Variant({"rounding": False})}, {"carry": ["latents"]}):
        assert not PGD(2, **options).sees_the_defence, "such an attack's logits are not the defence's either"


def test_a_surrogate_that_is_the_defence_changes_nothing() -> None:
    chosen, found = cases(9), []
    for surrogate in (None, NoisyPurifier(0.2)):
        engine = Engine(Defence(ToyClassifier(), NoisyPurifier(0.2)), 8)
        attack = PGD(5, eot=3, selection_draws=4, surrogate=surrogate)
        found.append(attack(engine, chosen, LINF, stream(9)).images)
    assert torch.equal(*found)


def test_a_diffusion_surrogate_with_fewer_steps_is_differentiated() -> None:
    """As GNSP's published attacks do: the same class, fewer steps."""
    denoiser = SmoothDenoiser(VPSchedule()).float()
    real, light = (DiffPure(denoiser, EulerMaruyama(), 100, steps) for steps in (4, 1))
    defence, x, y = Defence(ToyClassifier(), real), images(5), cases(5).labels
    through = Engine(defence, 8).through(light).answer(x, y, stream(5), CrossEntropy(), 3)
    alone = Engine(Defence(ToyClassifier(), light), 8).answer(x, y, stream(5), CrossEntropy(), 3)
    whole = Engine(defence, 8).answer(x, y, stream(5), CrossEntropy(), 3)
    assert torch.equal(through.gradient, alone.gradient)
    assert not torch.allclose(through.gradient, whole.gradient, rtol=1e-2)


def test_a_variant_is_the_defences_own_purifier_with_other_values() -> None:
    """Whatever the defence is, and at no other cost than naming what changes: the attack is the full surrogate's."""
    chosen, found = cases(9), []
    for surrogate in (Variant({"std": 0.05}), NoisyPurifier(0.05), None):
        engine = Engine(Defence(ToyClassifier(), NoisyPurifier(0.2)), 8)
        attack = PGD(5, eot=3, selection_draws=4, surrogate=surrogate)
        found.append(attack(engine, chosen, LINF, stream(9)).images)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_variant_changes_inner_arguments_and_shares_networks() -> None:
    denoiser = SmoothDenoiser(VPSchedule()).float()
    defence = Defence(ToyClassifier(), DiffPure(denoiser, EulerMaruyama(), 100, 4))
    engine, x, y = Engine(defence, 8), images(5), cases(5).labels
    source = PGD(2, surrogate=Variant({"num_steps": 1})).source(engine)
    light = source.defence.purifier  # type: ignore[attr-defined]
    assert light.denoiser is denoiser
    assert light.victim is defence.classifier
    assert light.runtime is defence.runtime
    assert [len(grid) - 1 for grid in light.grids] == [1]
    alone = Engine(Defence(ToyClassifier(), DiffPure(denoiser, EulerMaruyama(), 100, 1)), 8)
    given = (x, y, stream(5), CrossEntropy(), 3)
    assert torch.equal(source.answer(*given).gradient, alone.answer(*given).gradient)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_step": 3}, "DiffPure has no argument 'num_step' to change; it has denoiser, .*num_steps"),
        ({"denoiser.shape": 3}, "denoiser.shape is an argument of a network, which is shared"),
        ({"solver": {"class_path": "DDIM"}}, "solver is to become a DDIM, but only plain values can be changed"),
        ({"num_steps": 0}, "num_steps"),
    ],
)
def test_a_variant_of_what_is_not_there_is_refused_by_the_source(changes: dict, message: str) -> None:
    """Before any work, and not when it is built: what the defence is, the attack learns later."""
    attack = PGD(2, surrogate=Variant(changes))
    purifier = DiffPure(SmoothDenoiser(VPSchedule()), EulerMaruyama(), 100, 4)
    with pytest.raises(ValueError, match=message):
        attack.source(Engine(Defence(ToyClassifier(), purifier), 8))


def test_a_variant_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="name at least one argument of the defence's purifier"):
        Variant({})


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ({}, 0),
        ({"gradient": "bpda"}, 0),
        ({"surrogate": Identity()}, 2),
        ({"surrogate": Identity(), "spread": 3}, 3),
        ({"surrogate": Identity(), "spread": 0}, 0),
        ({"surrogate": Variant({"std": 0.1})}, 2),
        ({"surrogate": Identity(), "restarts": 2}, 4),
    ],
)
def test_spread_finalists_are_entered_only_where_the_defence_is_not_asked(options: dict, number: int) -> None:
    """Of 9 steps the iterates 3 and 6, or 2, 4 and 6, of every restart; where the defence is asked, its losses rank."""
    chosen, attack = cases(6), PGD(9, finalists=1, selection_draws=1, **options)
    followed, scored = _followed(attack), []

    class Telling(Engine):
        def logits(self, x: Tensor, noise: NoiseStream, draws: int = 1, task: str = "") -> Tensor:
            if task.startswith("selection"):
                scored.append(x)
            return super().logits(x, noise, draws, task)

    attack(Telling(Defence(ToyClassifier(), NoisyPurifier(0.1)), 8), chosen, LINF, stream(6))
    restarts, spread = attack.restarts, options.get("spread", 2) if number else 0
    assert len(scored) == 1 + restarts + number
    steps = [9 * (j + 1) // (spread + 1) for j in range(spread)]
    for restart in range(restarts):
        for place, step in enumerate(steps):
            entered = scored[1 + restart * (spread + 1) + place]
            assert torch.equal(entered, followed[9 * restart + step][0])


def test_a_surrogate_that_ranks_the_best_iterate_low_does_not_hide_it() -> None:
    """Its loss falls where the defence's rises: the evenly spaced iterates are what is left of the way."""
    chosen, found = right_cases(16), {}
    for spread in (0, 2, 8):
        real, surrogate = Watched(lambda x: x), Watched(lambda x: 1 - x)
        attack = PGD(9, finalists=1, selection_draws=1, surrogate=surrogate, spread=spread)
        engine = Engine(Defence(ToyClassifier(), real), 16)
        images = attack(engine, chosen, LINF, stream(16)).images
        found[spread] = CrossEntropy()(engine.logits(images, stream(16)), chosen.labels)
    assert (found[2] >= found[0]).all()
    assert (found[2] > found[0]).any()
    assert (found[8] >= found[2]).all(), "3 and 6 are among all 8"


def test_a_negative_spread_is_refused() -> None:
    with pytest.raises(ValueError, match="spread is -1; it cannot be negative"):
        PGD(2, spread=-1)


def test_the_exchanged_defence_is_made_once_and_shares_the_budget() -> None:
    defence, surrogate = Defence(ToyClassifier(), NoisyPurifier()), NoisyPurifier(0.5)
    defence.runtime = Runtime(4, 123.0)
    other = defence.with_purifier(surrogate)
    assert other is defence.with_purifier(surrogate)
    assert other.classifier is defence.classifier
    assert other.purifier is surrogate
    assert surrogate.runtime is defence.runtime
    assert surrogate.runtime.graph_budget == 123.0
    assert set(defence.state_dict()) == set(Defence(ToyClassifier(), NoisyPurifier()).state_dict())


def test_known_noise_is_known_to_the_surrogate_too() -> None:
    defence, verdict = Defence(ToyClassifier(), NoisyPurifier()), stream(4).fork("verdict")
    surrogate = NoisyPurifier(0.3)
    known = KnownNoise(defence, verdict).with_purifier(surrogate)
    expected = Defence(ToyClassifier(), surrogate)(images(4), verdict.repeat(1)).logits
    torch.testing.assert_close(known(images(4), stream(4).fork("anything")).logits, expected)


def test_a_victim_without_a_purifier_takes_no_surrogate() -> None:
    class Bare:
        random = False

        def __call__(
            self,
            x: Tensor,
            noise: NoiseStream,
            gradient: GradientMode = "exact",
            context: Context | None = None,
            wants: Collection[str] = frozenset(),
        ) -> Judged:
            return Judged(x.flatten(1)[:, :3])

    with pytest.raises(ValueError, match="Bare has no purifier that a surrogate could stand in for"):
        PGD(2, surrogate=Identity())(Engine(Bare(), 4), cases(3), LINF, stream(3))


# The card ------------------------------------------------------------


def _run(attack, purifier: Purifier, batch: int = 12):
    evaluator = toy_evaluator(purifier, attack, audit_images=6)
    records = evaluator.evaluate(right_cases(batch), torch.arange(batch) < 6)
    fingerprint = Fingerprint(evaluator.decides())
    content = {"sha256": fingerprint.sha256, "decides": json.loads(json.dumps(fingerprint.decides))}
    return records, make_card(records, content, [vars(evaluator.cost)])


def test_the_card_of_a_surrogate_says_so() -> None:
    attack = PGD(6, eot=2, selection_draws=4, surrogate=NoisyPurifier(0.02))
    records, card = _run(attack, NoisyPurifier(0.05))
    assert card["status"].startswith(
        "suspect: the attack follows the surrogate NoisyPurifier, which is not the gradient of the defence"
    )
    assert card["attack"]["differentiates"] == ["the surrogate NoisyPurifier"]
    assert card["attack"]["surrogate"]["std"] == 0.02
    assert {"bpda", "double_eps", "large_eps", "known_noise"} <= card["audit"]["expected_accuracy"].keys()
    assert [Record.from_json(record.to_json()).index for record in records] == [record.index for record in records]
    assert json.loads(json.dumps(card, allow_nan=False)) == card


@pytest.mark.parametrize(
    ("attack", "graphs", "word"),
    [
        (PGD(2), ["defence"], ""),
        (PGD(2, gradient="bpda"), ["the gradient bpda"], "the attack follows the gradient bpda, which is not"),
        (
            PGD(2, gradient="bpda", surrogate=NoisyPurifier()),
            ["the gradient bpda of the surrogate NoisyPurifier"],
            "the attack follows the gradient bpda of the surrogate NoisyPurifier, which is not",
        ),
        (PGD(2, surrogate=Identity()), ["the surrogate Identity"], "the attack follows the surrogate Identity, which"),
        (RandomDirections(2), [], ""),
        (Ensemble([PGD(2, gradient="bpda"), PGD(2)]), ["the gradient bpda", "defence"], ""),
        (
            Ensemble([PGD(2, gradient="bpda"), PGD(2, surrogate=Identity()), RandomDirections(2)]),
            ["the gradient bpda", "the surrogate Identity"],
            "the attack follows the gradient bpda and the surrogate Identity, which is not the gradient of the defence",
        ),
        (
            PGD(2, surrogate=Variant({"std": 0.02})),
            ["the variant std = 0.02"],
            "the attack follows the variant std = 0.02, which is not the gradient of the defence",
        ),
    ],
)
def test_what_is_differentiated_is_told(attack, graphs: list[str], word: str) -> None:
    evaluator = toy_evaluator(NoisyPurifier(0.05), attack)
    decides = json.loads(json.dumps(Fingerprint(evaluator.decides()).decides))
    logits = torch.eye(3)[0].expand(8, 3)
    record = Record(0, 0, torch.zeros(1, 4, 4), 0.1, False, logits, logits, {"winner": 0.0})
    card = make_card([record], {"sha256": "0" * 64, "decides": decides})
    assert card["attack"]["differentiates"] == graphs
    assert word in card["status"]
    assert card["status"].startswith("suspect" if word else "unaudited")


def test_a_surrogate_decides_results_and_so_its_arguments_do() -> None:
    prints = {
        Fingerprint(toy_evaluator(NoisyPurifier(), PGD(2, surrogate=surrogate)).decides()).sha256
        for surrogate in (None, Identity(), NoisyPurifier(0.1), NoisyPurifier(0.2))
    }
    assert len(prints) == 4


def test_calls_behind_a_surrogate_are_counted_in_rows() -> None:
    """Rows that pad the surrogate's calls are left out, as the defence's are."""
    evaluator = toy_evaluator(
        NoisyPurifier(), PGD(3, eot=1, selection_draws=4, finalists=2, surrogate=Identity()), audit_images=0
    )
    evaluator.evaluate(right_cases(5), torch.zeros(5, dtype=torch.bool))
    gradients = 3 * 5
    assert evaluator.cost.calls == {
        "classifier_forward": 2 * 8 * 5 + gradients + (2 + 1 + 2) * 4 * 5,
        "classifier_backward": gradients,
    }
