"""The audit: every weak attack and every faulty defence that is planted here is told for the right reason, and sound
evaluations are not suspected."""

import json
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lustral.attacks import (
    APGD,
    PGD,
    Cases,
    DifferenceOfLogitsRatio,
    Engine,
    Ensemble,
    Objective,
    RandomDirections,
    Square,
)
from lustral.attacks.base import Attack
from lustral.attacks.engine import Answer
from lustral.attacks.first_order import State
from lustral.evaluation import Defence, Evaluator, Fingerprint, Protocol, make_card, probes
from lustral.evaluation.audit import audited_indices
from lustral.networks import Classifier
from lustral.noise import NoiseStream
from lustral.purifiers import Context, Identity, Purified, Purifier
from lustral.threat import ThreatModel
from tests.contracts import NoisyPurifier, ToyClassifier, generator, right_cases

IMAGES = 16
THREAT = ThreatModel("linf", "16/255")


@pytest.fixture(autouse=True)
def _strong_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shown here needs the audit's own attacks to be attacks."""
    monkeypatch.setattr(probes, "EFFORT", probes.Effort(10, 8, 4, 80, 15, 2))


def _card(
    attack: Attack,
    purifier: Purifier | None = None,
    classifier: Classifier | None = None,
    threat: ThreatModel = THREAT,
    audit_images: int = 14,
) -> dict[str, Any]:
    defence = Defence(classifier or ToyClassifier(), purifier or Identity())
    evaluator = Evaluator(defence, attack, threat, Protocol(8, audit_images), seed=0, rows=128)
    cases = right_cases(IMAGES)
    audited = torch.isin(cases.index, torch.tensor(audited_indices(cases.index.tolist(), audit_images, 0)))
    records = evaluator.evaluate(cases, audited)
    decides = json.loads(json.dumps(Fingerprint(evaluator.decides()).decides))
    card = make_card(records, {"sha256": "0" * 64, "decides": decides}, [vars(evaluator.cost)])
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    return card


# Weak attacks ------------------------------------------------------------


class Descending(PGD):
    """Goes the wrong way."""

    def update(self, state: State, answer: Answer) -> State:
        return super().update(state, replace(answer, gradient=-answer.gradient))


class Resting(PGD):
    """Stays at its random start."""

    def update(self, state: State, answer: Answer) -> State:
        return state


class Forgetful(PGD):
    """Returns the clean images."""

    def run(self, engine: Engine, cases: Cases, threat: ThreatModel, noise: NoiseStream) -> Any:
        _, statistics = super().run(engine, cases, threat, noise)
        return cases.images.clone(), statistics


class Timid(PGD):
    """Uses a tenth of its budget."""

    def run(self, engine: Engine, cases: Cases, threat: ThreatModel, noise: NoiseStream) -> Any:
        return super().run(engine, cases, threat.scaled(0.1, tuple(cases.images.shape[1:])), noise)


class Lazy(PGD):
    """Gives up every second image."""

    def run(self, engine: Engine, cases: Cases, threat: ThreatModel, noise: NoiseStream) -> Any:
        images, statistics = super().run(engine, cases, threat, noise)
        even = (cases.index // 3 % 2 == 0)[:, None, None, None]
        return torch.where(even, cases.images, images), statistics


class Sparing(PGD):
    """Attacks the audited images alone: which they are hangs on the seed, and is no secret."""

    def run(self, engine: Engine, cases: Cases, threat: ThreatModel, noise: NoiseStream) -> Any:
        images, statistics = super().run(engine, cases, threat, noise)
        seen = torch.isin(cases.index, torch.tensor(audited_indices(cases.index.tolist(), 8, noise.seed)))
        return torch.where(seen[:, None, None, None], images, cases.images), statistics


class TowardsTheTruth(Objective):
    """A targeted loss whose target is the wrong one."""

    def __call__(self, logits: Tensor, y: Tensor, trace: Any = None, given: Any = None) -> Tensor:
        return -F.cross_entropy(logits[0], y, reduction="none")


class NotANumber(Objective):
    def __call__(self, logits: Tensor, y: Tensor, trace: Any = None, given: Any = None) -> Tensor:
        return logits.mean((0, 2)) * torch.nan


HOUSE, EDGE = "the house's attack beats the attack", "cannot reach the edge of its budget"
RANDOM = "the attack does no better than random directions"
TWICE, LARGE = (
    "the attack with twice the steps beats the attack",
    "accuracy is left at a budget that allows every image",
)
WEAK: dict[str, tuple[Attack, tuple[str, ...]]] = {
    "short steps": (PGD(5, step_size=0.004), (EDGE, HOUSE, TWICE)),
    "two steps": (PGD(2, step_size=0.004), (EDGE, HOUSE)),
    "short steps from the image": (PGD(10, step_size=0.001, random_start=False), (EDGE, HOUSE)),
    "wrong way": (Descending(10), (HOUSE, LARGE)),
    "at rest": (Resting(10), (HOUSE, LARGE)),
    "clean images": (Forgetful(10), (HOUSE, LARGE)),
    "a tenth of the budget": (Timid(10), (HOUSE,)),
    "every second image": (Lazy(10), (HOUSE,)),
    "towards the truth": (PGD(10, objective=TowardsTheTruth()), (HOUSE, LARGE)),
    "no number": (PGD(10, objective=NotANumber()), ("16 samples met NaN or Inf",)),
    "no gradient": (PGD(10, gradient="detached"), ("no gradient moved any image", HOUSE)),
    "chance": (RandomDirections(), (HOUSE, RANDOM)),
    "a few queries": (Square(5), (HOUSE,)),
}


@pytest.mark.parametrize("name", WEAK)
def test_a_weak_attack_is_told(name: str) -> None:
    attack, doubts = WEAK[name]
    status = _card(attack)["status"]
    assert status.startswith("suspect: ")
    assert [doubt for doubt in doubts if doubt not in status] == [], status


def test_an_attack_that_spares_the_images_which_are_not_audited_is_told() -> None:
    threat = ThreatModel("linf", "64/255")
    status = _card(Sparing(10), threat=threat, audit_images=8)["status"]
    assert "spares the images that are not audited (100 % of them stay right, 0 % of the audited)" in status


def _noisy_gradient(x: Tensor, noise: NoiseStream) -> Tensor:
    """A little noise in the image, and much in its gradient, which is right on average."""
    other = (x.flatten(1) @ torch.randn(16, 16, generator=generator(3))).view_as(x)
    signed = 3.0 * noise.normal((1, 1, 1), step=1, dtype=x.dtype) * other
    return x + 0.02 * noise.normal(x.shape[1:], dtype=x.dtype) + signed - signed.detach()


def test_too_few_draws_against_a_strongly_random_defence_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "EFFORT", probes.Effort(1, 10, 32, 1, 5, 1))
    assert HOUSE in _card(PGD(10, eot=1, random_start=False), Through(_noisy_gradient, True))["status"]


# Faults of defences ------------------------------------------------------------


class Through(Purifier):
    """A purifier made of a function of images and noise."""

    def __init__(self, function: Callable[[Tensor, NoiseStream], Tensor], random: bool = False) -> None:
        super().__init__()
        self.function, self.random = function, random

    def described(self) -> dict[str, Any]:
        return {"function": self.function.__name__, "random": self.random}

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        return Purified(self.function(x, noise)[None])


class Head(ToyClassifier):
    """The toy classifier with a head that hides its gradient."""

    def __init__(self, kind: str, seed: int = 0, weights: str | None = None) -> None:
        super().__init__(seed=seed, weights=weights)
        self.kind = kind

    def logits(self, x: Tensor) -> Tensor:
        z = super().logits(x)
        if self.kind == "saturated":
            return 1000.0 * z
        return F.one_hot(z.argmax(-1), z.shape[-1]) + 0.0 * z if self.kind == "hard" else z.round()


class Scrambling(torch.autograd.Function):
    """The gradient of something else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        order = torch.randperm(16, generator=generator(5))
        return (gradient.flatten(1)[:, order] * (1 - 2 * (order % 2))).view_as(gradient)


class Half(torch.autograd.Function):
    """The gradient of every second image is lost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(index)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return gradient * (ctx.saved_tensors[0] % 2).view(-1, 1, 1, 1), None


def _misleading(x: Tensor, noise: NoiseStream) -> Tensor:
    projection = torch.randn(16, 16, generator=generator(7)) / 4
    s = (x.flatten(1) @ projection).view_as(x)
    return x.detach() + s - s.detach()


def _half(x: Tensor, noise: NoiseStream) -> Tensor:
    return Half.apply(x, noise.index)  # type: ignore[return-value]


def _scrambled(x: Tensor, noise: NoiseStream) -> Tensor:
    return Scrambling.apply(x)  # type: ignore[return-value]


def _remembering(x: Tensor, noise: NoiseStream) -> Tensor:
    return right_cases(IMAGES).images[noise.index // 3] + 1e-3 * x


def _counting() -> Callable[[Tensor, NoiseStream], Tensor]:
    calls = [0]

    def shifted(x: Tensor, noise: NoiseStream) -> Tensor:
        calls[0] += 1
        return x + 0.05 * (calls[0] % 3)

    return shifted


def _listening(x: Tensor, noise: NoiseStream) -> Tensor:
    draws = 1e-3 * noise.normal(x.shape[1:], dtype=x.dtype)
    if "audit" not in noise.path:
        return _misleading(x, noise) + draws
    cases = right_cases(IMAGES)
    of_another_class = (cases.labels[:, None] != cases.labels).int().argmax(1)
    return cases.images[of_another_class[noise.index // 3]] + 1e-3 * x + draws


ZERO, KEY, STEP = "zero everywhere", "noise is not keyed", "the gradient does not predict what a step does"
BPDA, SEARCH = "bpda beats the attack", "a search without gradients beats the attack"
FAULTS: dict[str, tuple[Callable[[], dict[str, Any]], tuple[str, ...]]] = {
    "saturated logits": (lambda: {"classifier": Head("saturated")}, (ZERO,)),
    "hard maximum": (lambda: {"classifier": Head("hard")}, (ZERO,)),
    "rounded logits": (lambda: {"classifier": Head("round")}, (ZERO,)),
    "rounded images": (lambda: {"purifier": Through(lambda x, _: (16 * x).round() / 16)}, (ZERO, BPDA)),
    "lost gradient": (lambda: {"purifier": Through(lambda x, _: x.detach().clone())}, (ZERO, BPDA)),
    "gradient of half the images": (lambda: {"purifier": Through(_half)}, (ZERO,)),
    "misleading": (lambda: {"purifier": Through(_misleading)}, (STEP, BPDA, SEARCH)),
    "scrambled": (lambda: {"purifier": Through(_scrambled)}, (BPDA, SEARCH)),
    "wrong sign": (lambda: {"purifier": Through(lambda x, _: 2 * x.detach() - x)}, (STEP, BPDA, SEARCH)),
    "deaf": (lambda: {"purifier": Through(_remembering)}, (f"100 % {LARGE}",)),
    "other answers to the audit": (
        lambda: {"purifier": Through(_listening, True)},
        ("the same images are judged otherwise on the audit's draws",),
    ),
    "state": (lambda: {"purifier": Through(_counting())}, (KEY,)),
    "hidden chance": (lambda: {"purifier": Through(lambda x, _: x + 0.2 * torch.randn(x.shape))}, (KEY,)),
    "chance of its own": (lambda: {"purifier": Through(lambda x, _: x + 0.2 * torch.randn(x.shape), True)}, (KEY,)),
    "batch statistics": (lambda: {"purifier": Through(lambda x, _: x - 3 * (x.mean() - 0.5))}, (KEY,)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_defence_is_told(name: str) -> None:
    make, doubts = FAULTS[name]
    with torch.random.fork_rng():
        status = _card(PGD(10, eot=2, selection_draws=4), **make())["status"]
    assert status.startswith("suspect: ")
    assert [doubt for doubt in doubts if doubt not in status] == [], status


# Sound evaluations ------------------------------------------------------------


def _house() -> Ensemble:
    return Ensemble([APGD(10), APGD(10, objective=DifferenceOfLogitsRatio())])


def _squeezed(x: Tensor, noise: NoiseStream) -> Tensor:
    return 0.5 + 0.4 * torch.tanh(2 * x - 1)


SOUND: dict[str, Callable[[], dict[str, Any]]] = {
    "house": lambda: {"attack": _house()},
    "more than the house": lambda: {"attack": Ensemble([PGD(20), *_house().attacks])},
    "small budget": lambda: {"attack": _house(), "threat": ThreatModel("linf", "3/255")},
    "large budget": lambda: {"attack": _house(), "threat": ThreatModel("linf", "64/255")},
    "l2": lambda: {"attack": _house(), "threat": ThreatModel("l2", 0.2)},
    "no budget": lambda: {"attack": PGD(5), "threat": ThreatModel("linf", 0)},
    "smooth purifier": lambda: {"attack": _house(), "purifier": Through(_squeezed)},
    "random defence": lambda: {"attack": PGD(8, eot=4), "purifier": NoisyPurifier(0.1)},
    "random defence without budget": lambda: {
        "attack": PGD(5, eot=2),
        "purifier": NoisyPurifier(0.3),
        "threat": ThreatModel("linf", 0),
    },
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_evaluation_is_not_suspected(name: str) -> None:
    assert _card(**SOUND[name]())["status"] == "ok"


# The card ------------------------------------------------------------


def test_an_unaudited_card_says_so() -> None:
    assert _card(_house(), audit_images=0)["status"] == (
        "unaudited: nothing says whether the attack is strong (protocol.audit_images is 0)"
    )
    assert "cannot reach the edge" in (status := _card(PGD(2, step_size=0.001), audit_images=0)["status"])
    assert status.endswith("unaudited: nothing says whether the attack is strong (protocol.audit_images is 0)")


def test_the_audit_is_counted_beside_the_attack() -> None:
    cost = _card(_house())["cost"]["audit"]
    assert cost["images"] == 14
    assert cost["network_calls"] > 0
    assert cost["seconds"] > 0
    assert cost["calls_beside_the_attack"] > 0
    assert _card(_house(), audit_images=0)["cost"]["audit"]["network_calls"] == 0
