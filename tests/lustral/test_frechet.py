"""The Frechet distance against closed forms and an independent implementation; features; sums over processes."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from lustral.metrics import FeatureMoments, ImageStatistics, frechet_distance
from lustral.networks import Classifier, TimmClassifier, WideResNet
from tests.contracts import ToyClassifier, generator, images


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def _covariance(size: int, rank: int, seed: int = 0) -> Tensor:
    factor = _normal(size, rank, seed=seed)
    return factor @ factor.T / rank


def _moments(features: Tensor) -> FeatureMoments:
    moments = FeatureMoments(features.shape[1])
    moments.update(features)
    return moments


# Closed forms ------------------------------------------------------------------------------------------------

ZERO = torch.zeros(12, dtype=torch.float64)


@pytest.mark.parametrize("rank", [12, 5, 1])
def test_equal_laws_are_at_no_distance(rank: int) -> None:
    mean, covariance = _normal(12), _covariance(12, rank)
    assert frechet_distance(mean, covariance, mean, covariance) < 1e-12


@pytest.mark.parametrize("rank", [12, 5, 0])
def test_a_shift_counts_squared(rank: int) -> None:
    covariance = _covariance(12, rank) if rank else torch.zeros(12, 12, dtype=torch.float64)
    shift = _normal(12, seed=3)
    assert frechet_distance(ZERO, covariance, shift, covariance) == pytest.approx(float(shift @ shift))


@pytest.mark.parametrize("rank", [12, 5])
def test_a_scale_counts_as_the_change_of_standard_deviations(rank: int) -> None:
    """(c - 1)^2 tr S for features c times as long."""
    covariance = _covariance(12, rank)
    expected = (1.7 - 1) ** 2 * float(covariance.trace())
    assert frechet_distance(ZERO, covariance, ZERO, 1.7**2 * covariance) == pytest.approx(expected)


def test_covariances_with_common_axes_are_compared_axis_by_axis() -> None:
    axes, _ = torch.linalg.qr(_normal(12, 12))
    one, two = _normal(12, seed=1).square(), _normal(12, seed=2).square()
    one[:4], two[2:6] = 0, 0  # singular, on different axes
    found = frechet_distance(ZERO, (axes * one) @ axes.T, ZERO, (axes * two) @ axes.T)
    assert found == pytest.approx(float((one.sqrt() - two.sqrt()).square().sum()))


def test_two_lines_in_space() -> None:
    """Rank one: the root of (a a' b b') has the trace |a'b|, whatever the angle."""
    a, b = _normal(12, seed=1), _normal(12, seed=2)
    found = frechet_distance(ZERO, torch.outer(a, a), ZERO, torch.outer(b, b))
    assert found == pytest.approx(float(a @ a + b @ b - 2 * (a @ b).abs()))


def test_covariances_that_do_not_commute() -> None:
    """The root of a 2 x 2 matrix M has the trace sqrt(tr M + 2 sqrt(det M))."""
    one, two = _covariance(2, 3, seed=1), _covariance(2, 3, seed=2)
    product = one @ two
    root = (product.trace() + 2 * torch.linalg.det(product).sqrt()).sqrt()
    found = frechet_distance(ZERO[:2], one, ZERO[:2], two)
    assert found == pytest.approx(float(one.trace() + two.trace() - 2 * root))


def test_torchmetrics_agrees() -> None:
    metric = FrechetInceptionDistance(feature=nn.Flatten(), normalize=True, input_img_size=(1, 4, 4))
    real, fake = images(80, seed=1), images(60, seed=2).square()
    metric.update(real, real=True)
    metric.update(fake, real=False)
    (mean_1, one), (mean_2, two) = (_moments(x.flatten(1)).gaussian() for x in (real, fake))
    assert frechet_distance(mean_1, one, mean_2, two) == pytest.approx(float(metric.compute()), rel=1e-5)


# Moments -----------------------------------------------------------------------------------------------------


def test_moments_are_numpys_whatever_the_batches_and_processes() -> None:
    features = 1000.0 + _normal(50, 6) @ _normal(6, 6, seed=1)
    shares = [FeatureMoments(6), FeatureMoments(6)]
    for i, part in enumerate(features.split([1, 20, 22, 7])):
        shares[i % 2].update(part)
    shares[0].sums += shares[1].sums
    mean, covariance = shares[0].gaussian()
    assert shares[0].count == 50
    np.testing.assert_allclose(mean, features.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(features.numpy().T), rtol=1e-7, atol=1e-7)


def test_what_has_no_moments_is_refused() -> None:
    with pytest.raises(ValueError, match="D = 6"):
        FeatureMoments(6).update(_normal(3, 5))
    with pytest.raises(ValueError, match="covariance is asked of 1 images"):
        _moments(_normal(1, 6)).gaussian()


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


# Statistics of a set of images -------------------------------------------------------------------------------


def test_statistics_are_those_of_features_and_predictions_over_batches_and_processes() -> None:
    classifier, real, fake = ToyClassifier(), images(300, seed=1), images(200, seed=2).square()
    halves = [ImageStatistics(classifier) for _ in range(2)]
    for half, part in zip(halves, fake.split([90, 110]), strict=True):
        for batch in part.split(64):
            half.update(batch)
    sums = iter((halves[1].moments.sums, halves[1].class_counts))
    halves[0].gather(lambda own: own + next(sums))
    reference = ImageStatistics(classifier)
    reference.update(real)

    predicted = classifier(fake).argmax(1)
    expected = torch.tensor([float((predicted == k).double().mean()) for k in range(3)])
    torch.testing.assert_close(halves[0].class_shares(), expected.double())
    (mean_1, one), (mean_2, two) = (_moments(classifier.features(x).detach()).gaussian() for x in (fake, real))
    assert halves[0].frechet(reference) == pytest.approx(frechet_distance(mean_1, one, mean_2, two))
    assert halves[0].frechet(reference) > 1


def test_other_images_are_refused_unless_they_may_be_resized() -> None:
    """Constant images stay constant, so what the resized ones must look like is known."""
    classifier = ToyClassifier(shape=(3, 4, 4))
    grey = torch.linspace(0.1, 0.9, 5)[:, None, None, None].expand(-1, 1, 8, 8)
    with pytest.raises(ValueError, match=r"\(3, 4, 4\), but these are \(1, 8, 8\)"):
        ImageStatistics(classifier).update(grey)
    statistics, expected = ImageStatistics(classifier, resize=True), ImageStatistics(classifier)
    statistics.update(grey)
    expected.update(grey[:, :, :4, :4].expand(-1, 3, -1, -1))
    torch.testing.assert_close(statistics.moments.sums, expected.moments.sums, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="set resize to true"):
        ImageStatistics(ToyClassifier(), resize=True).update(images(2, (3, 4, 4)))
