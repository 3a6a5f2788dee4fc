"""The Frechet distance against closed forms and numpy's moments; features of classifiers; sums over processes."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn

from lustral.metrics import FrechetDistance
from lustral.networks import Classifier, TimmClassifier, WideResNet
from tests.contracts import ToyClassifier, generator, images


class _Pixels(Classifier):
    """Its features are the pixels themselves."""

    def __init__(self, size: int) -> None:
        super().__init__(3, (1, 1, size), (0.0,), (1.0,))
        self.head = nn.Linear(size, 3, dtype=torch.float64)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def _drawn(mean: Tensor, factor: Tensor, seed: int) -> Tensor:
    """50 features whose mean is ``mean`` (D,) and whose covariance F F' exactly, with ``factor`` F (D, rank)."""
    columns = torch.cat((torch.ones(50, 1, dtype=torch.float64), _normal(50, factor.shape[1], seed=seed)), dim=1)
    standard = torch.linalg.qr(columns).Q[:, 1:] * (50 - 1) ** 0.5
    return mean + standard @ factor.T


def _distance(real: Tensor, fake: Tensor) -> float:
    distance = FrechetDistance(_Pixels(real.shape[1]))
    distance.update(real[:, None, None], real=True)
    distance.update(fake[:, None, None], real=False)
    return float(distance.compute())


def _between(mean_1: Tensor, factor_1: Tensor, mean_2: Tensor, factor_2: Tensor) -> float:
    return _distance(_drawn(mean_1, factor_1, seed=8), _drawn(mean_2, factor_2, seed=9))


# Closed forms ------------------------------------------------------------------------------------------------

ZERO = torch.zeros(12, dtype=torch.float64)


def _about(expected: float) -> object:
    """Roots of eigenvalues that are nothing but rounding add up to some 1e-8 of the trace, which is up to 150 here."""
    return pytest.approx(expected, rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("rank", [12, 5, 1])
def test_equal_laws_are_at_no_distance(rank: int) -> None:
    mean, factor = _normal(12), _normal(12, rank)
    assert _between(mean, factor, mean, factor) == _about(0.0)


@pytest.mark.parametrize("rank", [12, 5, 0])
def test_a_shift_counts_squared(rank: int) -> None:
    factor, shift = _normal(12, rank), _normal(12, seed=3)
    assert _between(ZERO, factor, shift, factor) == _about(float(shift @ shift))


@pytest.mark.parametrize("rank", [12, 5])
def test_a_scale_counts_as_the_change_of_standard_deviations(rank: int) -> None:
    """(c - 1)^2 tr S for features c times as long."""
    factor = _normal(12, rank)
    expected = (1.7 - 1) ** 2 * float(factor.square().sum())
    assert _between(ZERO, factor, ZERO, 1.7 * factor) == _about(expected)


def test_covariances_with_common_axes_are_compared_axis_by_axis() -> None:
    axes, _ = torch.linalg.qr(_normal(12, 12))
    one, two = _normal(12, seed=1).abs(), _normal(12, seed=2).abs()
    one[:4], two[2:6] = 0, 0  # singular, on different axes
    expected = float((one - two).square().sum())
    assert _between(ZERO, axes * one, ZERO, axes * two) == _about(expected)


def test_two_lines_in_space() -> None:
    """Rank one: the root of (a a' b b') has the trace |a'b|, whatever the angle."""
    a, b = _normal(12, seed=1), _normal(12, seed=2)
    expected = float(a @ a + b @ b - 2 * (a @ b).abs())
    assert _between(ZERO, a[:, None], ZERO, b[:, None]) == _about(expected)


def test_covariances_that_do_not_commute() -> None:
    """The root of a 2 x 2 matrix M has the trace sqrt(tr M + 2 sqrt(det M))."""
    one, two = _normal(2, 3, seed=1), _normal(2, 3, seed=2)
    product = one @ one.T @ two @ two.T
    root = (product.trace() + 2 * torch.linalg.det(product).sqrt()).sqrt()
    expected = float(one.square().sum() + two.square().sum() - 2 * root)
    assert _between(ZERO[:2], one, ZERO[:2], two) == pytest.approx(expected)


# Sums --------------------------------------------------------------------------------------------------------


def test_moments_are_numpys_far_from_zero_whatever_the_batches_and_processes() -> None:
    """Features of mean 1000: float32 would lose the covariance."""
    real, fake = (1000.0 + _normal(50, 6, seed=s) @ _normal(6, 6, seed=s + 1) for s in (0, 2))
    shares = [FrechetDistance(_Pixels(6)) for _ in range(2)]
    for features, is_real in ((real, True), (fake, False)):
        for i, part in enumerate(features[:, None, None].split([1, 20, 22, 7])):
            shares[i % 2].update(part, is_real)
    shares[0].merge_state(shares[1])
    (mean_1, cov_1), (mean_2, cov_2) = ((x.mean(0), np.cov(x.T)) for x in (real.numpy(), fake.numpy()))
    root = np.real(np.trace(np.asarray(sqrtm(cov_1 @ cov_2))))
    expected = ((mean_1 - mean_2) ** 2).sum() + np.trace(cov_1 + cov_2) - 2 * root
    assert float(shares[0].compute()) == pytest.approx(expected, rel=1e-7)


def test_reset_forgets_generated_images_only() -> None:
    real, fake, other = (_normal(20, 1, 1, 6, seed=seed) for seed in range(3))
    distance = FrechetDistance(_Pixels(6))
    distance.update(real, real=True)
    distance.update(fake, real=False)
    distance.reset()
    distance.update(other, real=False)
    assert float(distance.compute()) == _distance(real[:, 0, 0], other[:, 0, 0])
    assert int(distance.class_counts.sum()) == 20


# Features of a classifier ------------------------------------------------------------------------------------


class _Headless(Classifier):
    def __init__(self) -> None:
        super().__init__(3, (1, 4, 4), (0.0,), (1.0,))

    def logits(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3]


def _wide_resnet() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return WideResNet(10, 1, 10, 1, 8).eval()


def _timm() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TimmClassifier("resnet10t", 5, 32).eval()


@pytest.mark.parametrize(("make", "size"), [(ToyClassifier, 128), (_wide_resnet, 64), (_timm, 512)])
def test_the_last_layer_makes_the_logits_of_the_features(make: type[Classifier], size: int) -> None:
    classifier = make()  # type: ignore[call-arg]
    x = images(3, classifier.image_shape).requires_grad_()
    features, logits = classifier.features_and_logits(x)
    assert features.shape == (3, size)
    assert torch.equal(logits, classifier(x))
    torch.testing.assert_close(classifier.last_layer(features), logits)
    assert torch.equal(classifier.features(x), features)
    (gradient,) = torch.autograd.grad(features.sum(), x)
    assert float(gradient.abs().max()) > 0
    assert not classifier.last_layer._forward_pre_hooks


def test_a_classifier_without_a_last_linear_layer_says_so() -> None:
    with pytest.raises(ValueError, match="_Headless has no linear layer of 3 outputs"):
        _Headless().features(images(2))


# Images ------------------------------------------------------------------------------------------------------


def test_a_distance_is_that_of_features_and_shares_are_those_of_predictions() -> None:
    classifier, real, fake = ToyClassifier(), images(300, seed=1), images(200, seed=2).square()
    halves = [FrechetDistance(classifier) for _ in range(2)]
    for half, part in zip(halves, fake.split([90, 110]), strict=True):
        half.update(real[:150] if half is halves[0] else real[150:], real=True)
        for batch in part.split(64):
            half.update(batch, real=False)
    halves[0].merge_state(halves[1])

    predicted = classifier(fake).argmax(1)
    expected = torch.tensor([float((predicted == k).double().mean()) for k in range(3)])
    torch.testing.assert_close(halves[0].class_shares(), expected.double())
    features = [classifier.features(x).detach().double() for x in (real, fake)]
    assert float(halves[0].compute()) == pytest.approx(_distance(*features), rel=1e-5)
    assert float(halves[0].compute()) > 1


def test_other_images_are_refused_unless_they_may_be_resized() -> None:
    """Constant images stay constant, so what the resized ones must look like is known."""
    classifier = ToyClassifier(shape=(3, 4, 4))
    grey = torch.linspace(0.1, 0.9, 5)[:, None, None, None].expand(-1, 1, 8, 8)
    with pytest.raises(ValueError, match=r"\(3, 4, 4\), but these are \(1, 8, 8\)"):
        FrechetDistance(classifier).update(grey, real=True)
    distance, expected = FrechetDistance(classifier, resize=True), FrechetDistance(classifier)
    distance.update(grey, real=True)
    expected.update(grey[:, :, :4, :4].expand(-1, 3, -1, -1), real=True)
    torch.testing.assert_close(distance.real_features_cov_sum, expected.real_features_cov_sum, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="set resize to true"):
        FrechetDistance(ToyClassifier(), resize=True).update(images(2, (3, 4, 4)), real=True)
