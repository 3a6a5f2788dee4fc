"""Defences for other libraries, and attacks of theirs under our verdicts."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lustral.attacks import Cases, Engine, ForeignAttack
from lustral.attacks.global_generators import seeded
from lustral.defence import Defence
from lustral.describe import describe
from lustral.networks import WrappedClassifier
from lustral.noise import NoiseStream
from lustral.threat import ThreatModel
from tests.contracts import images
from tests.toys.smoothing import Smoothing

SHAPE = (1, 4, 4)
THREAT = ThreatModel("linf", 0.1)


def defence(std: float = 0.1) -> Defence:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    return Defence(WrappedClassifier(network, 3, SHAPE), Smoothing(std))


def signs(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """A foreign attack: three small steps that leave the budget, from a random start of torch's own generator."""
    adversarial = (x + 0.1 * torch.rand_like(x)).requires_grad_(True)
    for _ in range(3):
        (gradient,) = torch.autograd.grad(cross_entropy(model(adversarial), y), adversarial)
        adversarial = (adversarial + 0.03 * gradient.sign()).detach().requires_grad_(True)
    return adversarial


def wrong(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return x[:1]


def cases(count: int = 4) -> tuple[Cases, NoiseStream]:
    index = torch.arange(count)
    return Cases(images(count, SHAPE), index % 3, index), NoiseStream(0, index)


def test_a_module_has_fresh_noise_and_can_be_repeated() -> None:
    x, module = images(4, SHAPE), defence().as_module(7)
    first, second = module(x), module(x)
    assert not torch.equal(first, second)
    again = defence().as_module(7)
    assert torch.equal(again(x), first)
    assert torch.equal(again(x), second)
    assert not torch.equal(defence().as_module(8)(x), first)
    assert not module.train().training
    assert not any(p.requires_grad for p in module.victim.parameters())


def test_its_gradient_is_that_of_the_defence() -> None:
    x = images(2, SHAPE).requires_grad_(True)
    (gradient,) = torch.autograd.grad(defence().as_module()(x)[:, 0].sum(), x)
    weight = defence().classifier.network[1].weight[0].view(SHAPE)  # type: ignore[index]
    assert torch.allclose(gradient, weight.expand(2, *SHAPE))


def test_a_foreign_attack_is_projected_and_does_not_hang_on_the_batch() -> None:
    attack, (some, noise) = ForeignAttack(signs), cases()
    result = attack(Engine(defence(), 4), some, THREAT, noise)
    assert float(result.distance.max()) <= 0.1 + 1e-6
    assert float(result.distance.min()) > 0.05
    rows = torch.tensor([2, 0])
    alone = attack(Engine(defence(), 4), some.select(rows), THREAT, noise.select(rows))
    assert torch.equal(alone.images, result.images[rows])
    assert not torch.equal(
        ForeignAttack(signs, together=4)(Engine(defence(), 4), some, THREAT, noise).images, result.images
    )


def test_the_global_generators_are_put_back() -> None:
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
    with seeded(3):
        drawn = (torch.rand(1).item(), np.random.rand(), random.random())  # noqa: NPY002
    with seeded(3):
        assert (torch.rand(1).item(), np.random.rand(), random.random()) == drawn  # noqa: NPY002
    after = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_a_recipe_names_the_function() -> None:
    attack = ForeignAttack(f"{__name__}.signs", together=2)
    described = describe(attack)
    assert described["function"]["name"].endswith("test_foreign.signs")
    assert described != describe(ForeignAttack(wrong, together=2))
    with pytest.raises(ValueError, match="cannot be imported"):
        ForeignAttack("nowhere.attack")
    with pytest.raises(ValueError, match="together is 0"):
        ForeignAttack(signs, together=0)
    some, noise = cases()
    with pytest.raises(ValueError, match=r"returned \(1, 1, 4, 4\)"):
        ForeignAttack(wrong, together=4)(Engine(defence(), 4), some, THREAT, noise)
