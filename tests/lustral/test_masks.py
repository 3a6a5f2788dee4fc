"""Masks: attention by hand, thresholds, and the controls."""

from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor

from lustral.networks import CifarResNet, WideResNet
from lustral.purifiers import AttentionMask, ConstantMask, InvertedMask, Mask, RandomMask
from lustral.purifiers.attention import energy, min_max, relative_softmax
from lustral.purifiers.masks import Activations
from tests.contracts import generator, images, stream

SIZE = (6, 6)


def _maps(x: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """Maps of two and three channels, of the images' own size and of half of it, rectified as a network's are."""
    known = {"fine": torch.cat((x - 0.4, 0.7 - x), 1), "coarse": torch.cat((x, 2 * x - 1, x**2), 1)[:, :, ::2, ::2]}
    return {name: 4 * known[name].relu() for name in names}


def _constant(x: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    return dict.fromkeys(names, 0 * x + 0.3)


def _made(
    mask: Mask, x: Tensor, size: tuple[int, int] = SIZE, activations: Activations = _maps, seed: int = 0
) -> Tensor:
    return mask(x, size, activations, stream(len(x), seed))


def _attention(stages: Any = ("fine", "coarse"), **options: Any) -> AttentionMask:
    return AttentionMask(list(stages), **options)


def test_the_energy_is_the_sum_of_powers_with_or_without_its_root() -> None:
    features = torch.randn(2, 3, 4, 5, generator=generator())
    for power in (1.0, 2.0, 3.5):
        by_hand = sum(features[:, c].abs() ** power for c in range(3))
        torch.testing.assert_close(energy(features, power, False)[:, 0], by_hand)
        torch.testing.assert_close(energy(features, power, True)[:, 0], by_hand ** (1 / power))


def test_normalisers_are_those_of_each_image() -> None:
    strength = 3 * torch.rand(3, 1, 4, 4, generator=generator(), dtype=torch.float64)
    for one, scaled, soft in zip(strength, min_max(strength), relative_softmax(strength), strict=True):
        torch.testing.assert_close(scaled, (one - one.min()) / (one.max() - one.min()))
        true = one.flatten().softmax(0).view_as(one)
        torch.testing.assert_close(soft, true / true.max())
        assert (scaled.max(), scaled.min(), soft.max()) == (1, 0, 1)


def test_maps_are_upsampled_between_the_centres_of_pixels() -> None:
    def map_of_two(x: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        return {name: torch.tensor([[0.0, 1.0], [0.0, 1.0]]).expand(len(x), 1, 2, 2) for name in names}

    found = _attention(["a"], power=1.0).attention(images(1), (4, 4), map_of_two)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.25, 0.75, 1.0]).expand(1, 1, 4, 4))


@pytest.mark.parametrize("normaliser", ["min_max", "softmax"])
def test_the_mask_is_the_union_of_the_thresholded_maps(normaliser: Any) -> None:
    """Equation 4, with >= as in the code."""
    x = images(5, (1, *SIZE))
    found = _made(_attention(tau=0.7, normaliser=normaliser), x)
    each = [_attention([name], normaliser=normaliser).attention(x, SIZE, _maps) >= 0.7 for name in ("fine", "coarse")]
    assert torch.equal(found, (each[0] | each[1]).float())
    assert not torch.equal(each[0], each[1])
    assert 0 < found.mean() < 1
    assert torch.equal(_made(_attention(tau=1.0), x).flatten(1).sum(1) >= 1, torch.ones(5, dtype=torch.bool))


def test_the_root_enlarges_the_mask() -> None:
    x = images(5, (1, *SIZE))
    plain, root = (_made(_attention(tau=0.6, root=root), x) for root in (False, True))
    assert (root >= plain).all()
    assert root.sum() > plain.sum()


@pytest.mark.parametrize(("area", "size", "count"), [(0.15, (20, 20), 60), (0.29, (10, 10), 29), (1.0, (3, 5), 15)])
def test_an_area_is_an_exact_number_of_pixels_of_the_highest_attention(
    area: float, size: tuple[int, int], count: int
) -> None:
    mask, x = _attention(tau=None, area=area), images(4, (1, *size))
    found = _made(mask, x, size)
    assert (found.flatten(1).sum(1) == count).all()
    attention = mask.attention(x, size, _maps)
    for inside, strength in zip(found.bool(), attention, strict=True):
        if count < strength.numel():
            assert strength[inside].min() >= strength[~inside].max()


def test_of_equal_pixels_the_first_are_taken() -> None:
    found = _made(_attention(tau=None, area=0.25), images(2, (1, *SIZE)), activations=_constant)
    assert torch.equal(found.flatten(1), (torch.arange(36) < 9).float().expand(2, 36))


@pytest.mark.parametrize("rounding", [True, False, "straight_through"])
@pytest.mark.parametrize(("normaliser", "share"), [("min_max", 0.0), ("softmax", 1.0)])
def test_a_constant_map_is_no_nan(normaliser: Any, share: float, rounding: Any) -> None:
    x = images(2, (1, *SIZE)).requires_grad_()
    mask = _attention(normaliser=normaliser, rounding=rounding, root=True)
    found = _made(mask, x, activations=_constant)
    assert found.isfinite().all()
    if rounding is not False:
        assert (found == share).all()
    if rounding is not True:
        assert torch.autograd.grad(found.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("threshold", [{"tau": 0.7}, {"tau": None, "area": 0.3}])
def test_the_relaxed_mask_is_rounded_to_the_hard_one_and_lends_it_its_gradient(threshold: dict[str, Any]) -> None:
    leaf = images(3, (1, *SIZE)).requires_grad_()
    hard, relaxed, straight = (
        _made(_attention(rounding=r, **threshold), leaf) for r in (True, False, "straight_through")
    )
    assert not hard.requires_grad
    assert torch.equal(straight.detach(), hard)
    assert torch.equal((relaxed > 0.5).float(), hard)
    weights = torch.randn(hard.shape, generator=generator())
    gradients = [torch.autograd.grad((weights * each).sum(), leaf)[0] for each in (relaxed, straight)]
    assert gradients[0].abs().max() > 0
    assert torch.equal(*gradients)
    cold = _made(_attention(rounding=False, temperature=1e-6, **threshold), leaf)
    torch.testing.assert_close(cold.detach(), hard)


def test_where_all_channels_are_zero_the_root_has_a_gradient() -> None:
    x = torch.zeros(1, 2, 3, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(energy(x, 2.0, True).sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))


def test_what_the_victim_is_shown() -> None:
    shown = []

    def looking(x: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        shown.append(x)
        return dict.fromkeys(names, x)

    x = images(2, (3, *SIZE))
    for given in ("unit", "diffusion", "normalised"):
        _made(_attention(["a"], input_range=given), x, activations=looking)
    assert torch.equal(shown[0], x)
    torch.testing.assert_close(shown[1], 2 * x - 1)
    torch.testing.assert_close(shown[2][:, 1], (2 * x[:, 1] - 1 - 0.456) / 0.224)


def test_a_random_mask_has_the_same_area_in_other_places() -> None:
    x = images(6, (1, *SIZE))
    mask = _attention(tau=0.7)
    own, moved = _made(mask, x), RandomMask(mask)
    found, again, other = (_made(moved, x, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(found.flatten(1).sum(1), own.flatten(1).sum(1))
    assert torch.equal(found, again)
    assert all(not torch.equal(*pair) for pair in ((found, own), (found, other)))
    n = 4000
    spread = moved(x[:1].expand(n, -1, -1, -1), SIZE, _maps, stream(1).repeat(n)).mean(0)
    torch.testing.assert_close(spread, own[:1].mean().expand_as(spread), rtol=0, atol=0.04)  # 5 standard errors


def test_a_moved_mask_keeps_its_shape() -> None:
    x = images(6, (1, *SIZE))
    mask = _attention(tau=0.7)
    own, found = _made(mask, x), _made(RandomMask(mask, keep_shape=True), x)
    offsets = []
    for before, after in zip(own[:, 0], found[:, 0], strict=True):
        rolls = [(i, j) for i in range(6) for j in range(6) if torch.equal(before.roll((i, j), (0, 1)), after)]
        offsets += rolls[:1]
    assert len(offsets) == 6, "each is its own mask moved"
    assert len(set(offsets)) > 3


def test_the_other_controls() -> None:
    x, mask = images(3, (1, *SIZE)), _attention(tau=0.7)
    assert torch.equal(_made(InvertedMask(mask), x), 1 - _made(mask, x))
    assert torch.equal(_made(ConstantMask(), x), torch.ones(3, 1, *SIZE))
    assert torch.equal(_made(ConstantMask(False), x), torch.zeros(3, 1, *SIZE))
    assert torch.equal(RandomMask(InvertedMask(mask)).attention(x, SIZE, _maps), mask.attention(x, SIZE, _maps))
    assert (RandomMask(mask).looks, ConstantMask().looks) == (True, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": []}, "list the names"),
        ({"stages": "relu"}, "list the names"),
        ({"tau": None}, "give exactly one"),
        ({"area": 0.2}, "give exactly one"),
        ({"tau": 1.5}, r"tau is 1.5; it lies in \(0, 1\]"),
        ({"tau": None, "area": 0.0}, "area is 0.0"),
        ({"power": 0.5}, "power = 0.5 must be at least 1"),
        ({"temperature": 0.0}, "temperature = 0.0 positive"),
        ({"normaliser": "l2"}, "normaliser is 'l2'; it may be min_max, softmax"),
        ({"rounding": "soft"}, "rounding is 'soft'; it may be True, False, straight_through"),
        ({"input_range": "raw"}, "input_range is 'raw'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionMask(**{"stages": ["fine"], **options})


def test_an_unfit_victim_is_refused() -> None:
    grey = WideResNet(10, 1, channels=1, image_size=8)
    with pytest.raises(
        ValueError, match=r"looks at the stage 'layer1', which WideResNet does not have: .*block1\.relu2"
    ):
        InvertedMask(_attention(["layer1"])).check(grey)
    with pytest.raises(ValueError, match=r"but the classifier's have 1 channel\(s\)"):
        _attention(["relu"], input_range="normalised").check(grey)
    _attention(["layer1"]).check(CifarResNet())
    with pytest.raises(ValueError, match="and no map"):
        _made(_attention(["a"]), images(2), activations=lambda x, names: {"a": x.flatten(1)})
    with pytest.raises(ValueError, match="less than one of 36 pixels"):
        _made(_attention(tau=None, area=0.02), images(2, (1, *SIZE)))
