"""The defence: classifier after purifier, frozen, views merged; and the same defence with its noise known."""

from collections.abc import Collection
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from lustral.attacks import PGD, CrossEntropy, Engine, MeanLogitMargin
from lustral.describe import describe
from lustral.evaluation import Defence, Evaluator, Protocol
from lustral.evaluation.audit import KnownNoise
from lustral.evaluation.cost import LiveBytes
from lustral.noise import NoiseStream
from lustral.purifiers import Context, Identity, Purified, Purifier
from lustral.threat import ThreatModel
from tests.contracts import NoisyPurifier, ToyClassifier, cases, images, stream


class Views(Purifier):
    """Three views of each image, and a victim that it was shown."""

    random = False

    def __init__(self) -> None:
        super().__init__()
        self.bound: list[nn.Module] = []

    offers: ClassVar = {"brightness": "(B,) the mean of the pixels"}

    def bind(self, classifier: nn.Module) -> None:
        super().bind(classifier)
        self.bound.append(classifier)

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        brightness = {"brightness": x.detach().flatten(1).mean(1)} if wants else {}
        return Purified(torch.stack((x, 0.5 * x, 1 - x)), brightness)


def test_a_defence_is_the_classifier_after_the_purifier() -> None:
    classifier, x = ToyClassifier(), images(4)
    undefended = Defence(classifier, Identity())
    torch.testing.assert_close(undefended(x, stream(4)).logits, classifier(x))
    assert not undefended.random
    purifier = NoisyPurifier()
    judged = Defence(classifier, purifier)(x, stream(4))
    torch.testing.assert_close(judged.logits, classifier(purifier(x, stream(4)).images[0]))


def test_views_are_merged_by_their_mean_logits() -> None:
    classifier, x = ToyClassifier(), images(4)
    judged = Defence(classifier, Views())(x, stream(4), wants=["brightness"])
    expected = (classifier(x) + classifier(0.5 * x) + classifier(1 - x)) / 3
    torch.testing.assert_close(judged.logits, expected)
    torch.testing.assert_close(judged.trace["brightness"], x.flatten(1).mean(1))


def test_the_purifier_sees_the_victim_before_any_image() -> None:
    classifier, purifier = ToyClassifier(), Views()
    Defence(classifier, purifier)
    assert purifier.bound == [classifier]
    assert purifier.victim is classifier
    assert not list(purifier.parameters()), "the victim is shown, and is no part of the purifier"
    assert describe(purifier) == describe(Views())


def test_views_that_vote_are_counted_and_differentiated_one_by_one() -> None:
    classifier, x = ToyClassifier(), images(6)
    views = torch.stack([classifier(each) for each in (x, 0.5 * x, 1 - x)])
    judged = Defence(classifier, Views(), "vote")(x, stream(6))
    expected = torch.nn.functional.one_hot(views.argmax(-1), 3).sum(0).float()
    assert torch.equal(judged.logits, expected)
    assert judged.views is not None
    torch.testing.assert_close(judged.views, views)
    with pytest.raises(ValueError, match="merge is 'max'; it may be mean, vote"):
        Defence(classifier, Views(), "max")  # type: ignore[arg-type]
    y = torch.zeros(6, dtype=torch.int64)
    for objective in (CrossEntropy(), MeanLogitMargin()):
        leaf = x.clone().requires_grad_()
        seen = torch.stack([classifier(each) for each in (leaf, 0.5 * leaf, 1 - leaf)])
        (gradient,) = torch.autograd.grad(objective(seen, y).sum(), leaf)
        answer = Engine(Defence(classifier, Views(), "vote"), 4).answer(x, y, stream(6), objective)
        torch.testing.assert_close(answer.gradient, gradient)
        torch.testing.assert_close(answer.loss, objective(seen, y).detach())
        assert torch.equal(answer.logits[0], expected)
        assert torch.equal(answer.rank, objective(expected[None], y)), "ranked by the merged answer"


def test_both_parts_are_frozen_and_the_input_is_not() -> None:
    """In an evaluation; a training uses the same class, and freezes nothing."""
    classifier = ToyClassifier().train()
    defence = Defence(classifier, NoisyPurifier())
    assert classifier.training
    assert all(parameter.requires_grad for parameter in classifier.parameters())
    Evaluator(defence, PGD(1), ThreatModel("linf", 0.1), Protocol(1), seed=0, rows=4)
    assert not classifier.training
    assert not any(parameter.requires_grad for parameter in defence.parameters())
    leaf = images(2).requires_grad_()
    defence(leaf, stream(2)).logits.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().max() > 0


@pytest.mark.parametrize("rows", [torch.tensor([0, 1, 2, 3, 4]), torch.tensor([3, 3, 0])])
def test_known_noise_is_the_verdicts_first_draw_whatever_is_asked(rows: Tensor) -> None:
    defence, verdict = Defence(ToyClassifier(), NoisyPurifier()), stream(5).fork("verdict", "adversarial")
    known = KnownNoise(defence, verdict)
    expected = Engine(defence, 8).logits(images(5), verdict, 3)[0]
    for asked in (stream(5), stream(5).fork("gradient").at(iteration=7)):
        found = known(images(5)[rows], asked.select(rows)).logits
        torch.testing.assert_close(found, expected[rows])
    assert not known.random


def test_an_attack_sees_fresh_noise_at_every_iteration_and_restart() -> None:
    """Noise that repeats is learnt by heart, and such an attack flatters the defence by points."""
    asked: list[NoiseStream] = []

    class Watching(NoisyPurifier):
        def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
            asked.append(noise)
            return super().run(x, context, noise, wants)

    attack = PGD(4, restarts=2, eot=3, selection_draws=2)
    attack(Engine(Defence(ToyClassifier(), Watching()), 16), cases(5), ThreatModel("linf", 0.1), stream(5))
    drawn: dict[tuple[str, ...], list[float]] = {}
    for noise in asked:
        for value in noise.uniform((1,), dtype=torch.float64).flatten().unique().tolist():  # padding repeats a row
            drawn.setdefault(noise.path, []).append(value)
    gradient = drawn["attack", "PGD", "gradient"]
    assert len(gradient) == len(set(gradient)) == 4 * 2 * 3 * 5
    selection = drawn["attack", "PGD", "selection"]
    assert len(set(selection)) == 2 * 5, "finalists are compared on the same draws"
    assert not set(gradient) & set(selection)


def test_live_bytes_counts_what_is_alive() -> None:
    with LiveBytes() as live:
        first = torch.zeros(1000)
        assert live.live == 4000
        view = first.view(10, 100)
        assert live.live == 4000, "a view is no new memory"
        second = first + 1
        assert live.live == 8000
        del first
        assert live.live == 8000, "the view keeps it alive"
        del view, second
        assert live.live == 0
    assert live.peak == 8000
