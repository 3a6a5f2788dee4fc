"""The minimum-margin attack against a straight transcription of its definition."""

import pytest
import torch
from torch import Tensor

from lustral.attacks import MMA, CappedTargetMargin, Engine
from lustral.attacks.objectives import TARGET
from lustral.evaluation import Defence
from lustral.purifiers import Identity
from lustral.threat import ThreatModel
from tests.contracts import ToyClassifier, cases, stream

THREAT = ThreatModel("linf", "16/255")


def test_the_loss_is_flat_from_its_confidence_on() -> None:
    logits = torch.tensor([[[0.0, 3.0, 1.0], [0.0, 3.0, 1.0]]], requires_grad=True)
    y, given = torch.tensor([0, 0]), {TARGET: torch.tensor([1, 2])}
    loss = CappedTargetMargin(2.0)(logits, y, {}, given)
    assert loss.tolist() == [0.0, -1.0]
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient[0].tolist() == [[0.0, 0.0, 0.0], [-1.0, 0.0, 1.0]]


def _straight(network: ToyClassifier, x: Tensor, y: Tensor, steps: int, targets: int) -> Tensor:
    """Without a random start: the last iterates of all targets, and the one of largest margin of each image."""
    order = network(x).detach().scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
    ends, margins = [], []
    for number in range(targets):
        z = x.clone()
        for _ in range(steps):
            leaf = z.clone().requires_grad_()
            logits = network(leaf)
            lead = logits.gather(1, order[:, number, None]) - logits.gather(1, y[:, None])
            (gradient,) = torch.autograd.grad(lead.clamp_max(50.0).sum(), leaf)
            z = THREAT.project(z + 2.5 * THREAT.budget / steps * gradient.sign(), x)
        logits = network(z).detach()
        wrong = logits.scatter(1, y[:, None], -torch.inf).amax(1)
        ends.append(z)
        margins.append(wrong - logits.gather(1, y[:, None])[:, 0])
    best = torch.stack(margins).argmax(0)
    return torch.stack(ends)[best, torch.arange(len(x))]


def test_the_last_iterate_of_the_best_target_is_returned() -> None:
    network, chosen = ToyClassifier(4), cases(12, classes=4)
    network.requires_grad_(False)
    attack = MMA(5, 3, random_start=False)
    found = attack(Engine(Defence(network, Identity()), 12), chosen, THREAT, stream(12)).images
    torch.testing.assert_close(found, _straight(network, chosen.images, chosen.labels, 5, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_targets": 0}, "num_targets is 0"),
        ({"step_size": 0}, "step_size is 0"),
        ({"confidence": -1.0}, "confidence is -1.0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        MMA(**options)  # type: ignore[arg-type]
