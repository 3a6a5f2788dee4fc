"""Attacks on the mask of heterogeneous noise: attention that is moved away, and perturbations of little noise alone."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lustral.attacks import (
    PGD,
    CrossEntropy,
    Deviation,
    Engine,
    Ensemble,
    Margin,
    MeanLogitMargin,
    MoveAttention,
    Objective,
)
from lustral.defence import Defence
from lustral.diffusion import DDIM, LinearSchedule
from lustral.noise import NoiseStream
from lustral.purifiers import AttentionMask, DiffPure, HeterogeneousNoise, RandomMask
from lustral.threat import ThreatModel
from tests.contracts import (
    SeenClassifier,
    SmoothDenoiser,
    cases,
    central_differences,
    images,
    relative_error,
    right_cases,
    stream,
)

SHAPE = (1, 4, 4)
LINF, L2 = ThreatModel("linf", "24/255"), ThreatModel("l2", 0.3)


def _defence(random: bool = False) -> Defence:
    mask = AttentionMask(["conv"], tau=0.5)
    purifier = HeterogeneousNoise(
        SmoothDenoiser(LinearSchedule(), SHAPE).float(),
        RandomMask(mask) if random else mask,
        num_steps=(4, 1),
        num_resamples=2,
    )
    return Defence(SeenClassifier(), purifier).requires_grad_(False)


def _attention(x: Tensor) -> Tensor:
    return _defence()(x, stream(len(x)), wants=["attention"]).trace["attention"]


# Attention that is moved ------------------------------------------------------------


def test_the_term_is_the_attention_where_the_perturbation_lies() -> None:
    objective = MoveAttention(CrossEntropy(), -2.0)
    attention = torch.tensor([[[[0.1, 0.9]]], [[[0.4, 0.6]]], [[[0.3, 0.5]]]]).expand(2, 3, 1, 1, 2)
    perturbation = torch.tensor([[[[1.0, 3.0]]], [[[-1.0, 0.0]]], [[[0.0, 0.0]]]])
    term = objective.term({"attention": attention}, torch.zeros(3), {"perturbation": perturbation})
    expected = torch.tensor([(0.1 + 9 * 0.9) / 10, 0.4, 0.4], dtype=torch.float64).expand(2, 3)
    torch.testing.assert_close(term, expected, rtol=0, atol=1e-7)
    logits, y = torch.randn(2, 3, 4), torch.tensor([0, 1, 2])
    given = {"perturbation": perturbation}
    loss = objective(logits, y, {"attention": attention}, given)
    torch.testing.assert_close(loss, CrossEntropy()(logits, y) - 2.0 * expected[0].float())


def test_channels_count_together_and_the_perturbation_is_resized() -> None:
    objective = MoveAttention(CrossEntropy(), 1.0)
    attention = torch.rand(1, 1, 1, 8, 8)
    perturbation = torch.zeros(1, 3, 4, 4)
    perturbation[0, 2] = 0.1
    term = objective.term({"attention": attention}, torch.zeros(1), {"perturbation": perturbation})
    torch.testing.assert_close(term[0, 0], attention.double().mean())


@pytest.mark.parametrize("objective", [CrossEntropy(), MeanLogitMargin()], ids=["mean", "of the mean"])
def test_its_gradient_agrees_with_central_differences(objective: Objective) -> None:
    defence = _defence().double()
    x, y, noise = images(2, SHAPE, dtype=torch.float64), torch.tensor([0, 1]), stream(2)
    given = {"perturbation": images(2, SHAPE, seed=3, dtype=torch.float64)}
    steered, plain = MoveAttention(objective, 30.0), objective
    engine = Engine(defence, 4)

    def loss(x: Tensor) -> Tensor:
        return engine.answer(x, y, noise, steered, 2, given=given).loss

    gradient = engine.answer(x, y, noise, steered, 2, given=given).gradient
    assert relative_error(gradient, central_differences(loss, x)) < 1e-6
    assert relative_error(gradient, engine.answer(x, y, noise, plain, 2).gradient) > 0.05


def test_an_attack_moves_the_attention_where_it_wants_it() -> None:
    chosen, found = cases(6, SHAPE), {}
    for weight in (-1e3, 1e3):
        attack = PGD(5, objective=MoveAttention(CrossEntropy(), weight), selection="last")
        x = attack(Engine(_defence(), 8), chosen, LINF, stream(6)).images
        energy = (x - chosen.images).square()
        found[weight] = (energy * _attention(x)).flatten(1).sum(1) / energy.flatten(1).sum(1)
    assert (found[-1e3] < found[1e3] - 0.02).all()


def test_not_a_bit_depends_on_the_batch() -> None:
    chosen = right_cases(5)
    for attack in (
        PGD(2, eot=2, objective=MoveAttention(Margin(), -1.0), selection_draws=2),
        PGD(2, eot=2, region="low_noise", selection_draws=2),
    ):
        together = attack(Engine(_defence(), 4), chosen, LINF, stream(5)).images
        for part in (torch.tensor([4, 0, 3]),):
            alone = attack(Engine(_defence(), 4), chosen.select(part), LINF, stream(5).select(part)).images
            assert torch.equal(alone, together[part])


def test_where_attention_has_no_gradient_or_no_perturbation_is_known_it_is_refused() -> None:
    objective = MoveAttention(CrossEntropy(), -1.0)
    assert Deviation(objective, 1.0).expects == objective.expects
    with pytest.raises(ValueError, match="follows the attention, which the gradient 'bpda' does not see"):
        PGD(2, objective=objective, gradient="bpda")
    with pytest.raises(ValueError, match="takes the perturbation of each image, which nobody chose"):
        Engine(_defence(), 4).answer(images(2, SHAPE), torch.tensor([0, 1]), stream(2), objective)
    diffpure = Defence(SeenClassifier(), DiffPure(SmoothDenoiser(LinearSchedule()).float(), DDIM(), 50, 2))
    with pytest.raises(ValueError, match="The trace of DiffPure has no attention"):
        PGD(2, objective=objective).source(Engine(diffpure, 4))


# Little noise alone ------------------------------------------------------------


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
@pytest.mark.parametrize("random", [False, True], ids=["attention", "scattered"])
def test_only_pixels_outside_of_the_clean_mask_are_perturbed(threat: ThreatModel, random: bool) -> None:
    chosen, engine = right_cases(6), Engine(_defence(random), 8)
    attack = PGD(4, eot=2, restarts=2, region="low_noise", selection_draws=2)
    x = Ensemble([attack], 2)(engine, chosen, threat, stream(6)).images
    own = stream(6).fork("attack", "Ensemble").fork("0").fork("attack", "PGD").fork("region")
    mask = engine.defence(chosen.images, own, wants=["mask"]).trace["mask"]  # type: ignore[call-arg]
    moved = (x - chosen.images).abs()
    assert (mask.flatten(1).sum(1) > 0).all()
    assert (moved[mask == 1] == 0).all()
    assert ((moved * (1 - mask)).flatten(1).amax(1) > 0).all()
    if threat.norm == "l2":  # the whole length of a step lies in the region
        assert threat.distance(x, chosen.images).min() > 0.5 * threat.budget


def test_free_images_and_pixels_are_chosen_together() -> None:
    chosen = cases(3, SHAPE)
    region, free = torch.rand(3, 1, 4, 4) < 0.5, torch.tensor([True, False, True])
    both = replace(chosen, free=free, region=region).select(torch.tensor([2, 1]))
    x = both.confined(torch.zeros_like(both.images))
    assert torch.equal(x[0] == 0, region[2])
    assert torch.equal(x[1], chosen.images[1])
    assert replace(chosen, free=free).may is not None
    assert chosen.may is None


def test_without_a_mask_there_is_no_low_noise() -> None:
    diffpure = Defence(SeenClassifier(), DiffPure(SmoothDenoiser(LinearSchedule()).float(), DDIM(), 50, 2))
    attack = PGD(2, region="low_noise")
    with pytest.raises(ValueError, match="region is low_noise, but DiffPure makes no mask"):
        attack(Engine(diffpure, 4), cases(2, SHAPE), LINF, NoiseStream(0, torch.arange(2)))
    with pytest.raises(ValueError, match="region is 'inside'; it may be all, low_noise"):
        PGD(2, region="inside")  # type: ignore[arg-type]
