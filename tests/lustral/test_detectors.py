"""Detectors: what they compute, what they do not depend on, and thresholds that refuse what they are not for."""

from pathlib import Path

import pytest
import torch

from lustral.detectors import (
    Detector,
    GaussianKernel,
    GroupMMD,
    PerturbationMMD,
    PerturbationNorm,
    Reference,
    SampleMMD,
    StoredReference,
    calibrated,
    mmd,
    read_threshold,
)
from lustral.detectors.thresholds import conformal_quantile
from lustral.diffusion import EPS, VPSchedule, to_diffusion
from lustral.diffusion.perturbation import perturbation, perturbation_map
from lustral.noise import NoiseStream
from lustral.rows import Runtime
from tests.contracts import SmoothDenoiser, images, stream
from tests.toys.detection import group_mmd, sample_mmd


def reference(n: int = 6, seed: int = 5) -> Reference:
    return Reference(images(n, seed=seed), torch.arange(n) + 100, {"name": "toy"})


def detectors() -> list[Detector]:
    denoiser = SmoothDenoiser(VPSchedule()).float()
    return [
        SampleMMD(GaussianKernel(3.0), reference()),
        SampleMMD(GaussianKernel(), reference()),
        PerturbationMMD(denoiser, EPS(3, 10.0), GaussianKernel(), reference()),
        PerturbationNorm(denoiser, EPS(3, 10.0)),
    ]


@pytest.mark.parametrize("detector", detectors(), ids=lambda each: type(each).__name__)
def test_an_image_s_score_depends_on_no_other_image(detector: Detector) -> None:
    detector.runtime = Runtime(rows=4)
    x, noise = images(6), stream(6)
    together = detector(x, noise)
    assert together.shape == (6,)
    assert together.dtype == torch.float64
    order = torch.tensor([4, 0, 5])
    assert torch.equal(detector(x[order], noise.select(order)), together[order])
    other = x.clone()
    other[1:] = float("nan")
    assert torch.equal(detector(other, noise)[0], together[0])
    with pytest.raises(ValueError, match="6 images and noise of 5 rows"):
        detector(x, noise.select(torch.arange(5)))


def test_scores_are_those_of_straight_sums() -> None:
    x, kept = images(3), reference()
    detector = SampleMMD(GaussianKernel(3.0), kept)
    found = detector(x, stream(3)).detach()
    for i in range(3):
        rr = torch.stack(
            [torch.exp(-(a.double() - b.double()).square().sum() / 3) for a in kept.images for b in kept.images]
        )
        rx = torch.stack([torch.exp(-(a.double() - x[i].double()).square().sum() / 3) for a in kept.images])
        assert abs(float(found[i]) - float(rr.mean() - 2 * rx.mean() + 1)) < 1e-10
        biased = mmd(GaussianKernel(3.0), kept.images, x[i : i + 1], "biased").item()
        assert float(found[i]) == pytest.approx(biased, abs=1e-12)


def test_perturbation_maps_are_the_mean_score_of_noised_images() -> None:
    denoiser, score = SmoothDenoiser(VPSchedule()), EPS(3, 10.0)
    x, noise = to_diffusion(images(2, dtype=torch.float64)), stream(2)
    total = torch.zeros_like(x)
    for i in range(3):
        t = torch.tensor(10.0 * (i + 1), dtype=torch.float64)
        alpha, sigma = denoiser.schedule.alpha(t), denoiser.schedule.sigma(t)
        x_t = alpha * x + sigma * noise.normal((1, 4, 4), step=i, dtype=torch.float64)
        total += (alpha * denoiser(x_t, t) - x_t) / sigma**2 / 3
    found = perturbation_map(score, denoiser, x, noise)
    assert (found - total).abs().max() < 1e-10
    assert torch.allclose(perturbation(score, denoiser, x, noise), total.flatten(1).norm(dim=1), atol=1e-10)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_a_group_s_statistic_depends_on_nothing_outside_of_it(estimator: str) -> None:
    kept = reference(7)
    detector = GroupMMD(GaussianKernel(3.0), estimator, kept)  # type: ignore[arg-type]
    detector.runtime = Runtime(rows=4)
    x, noise = images(12), stream(12)
    found = detector.statistic(x, 3, noise)
    assert found.shape == (4,)
    rows = torch.tensor([6, 7, 8, 0, 1, 2])
    assert torch.equal(detector.statistic(x[rows], 3, noise.select(rows)), found[torch.tensor([2, 0])])
    alone = mmd(GaussianKernel(3.0), kept.images, x[3:6], estimator).item()  # type: ignore[arg-type]
    assert float(found[1]) == pytest.approx(alone, abs=1e-10)
    with pytest.raises(ValueError, match="12 images are no whole groups of 5: give a multiple, such as 10"):
        detector.statistic(x, 5, noise)


def test_a_detector_without_reference_says_so() -> None:
    with pytest.raises(ValueError, match="SampleMMD compares with reference images and has none"):
        SampleMMD(GaussianKernel(3.0))(images(2), stream(2))
    assert not PerturbationNorm(SmoothDenoiser(VPSchedule()), EPS(2)).needs_reference


def test_a_reference_is_written_and_read(tmp_path: Path) -> None:
    kept = reference()
    path = kept.write(tmp_path / "reference.safetensors")
    again = StoredReference(str(path))
    assert again.sha256 == kept.sha256
    assert again.described() == kept.described()
    assert StoredReference(str(path), 3).sha256 != kept.sha256
    with pytest.raises(ValueError, match="num_images is 9"):
        StoredReference(str(path), 9)
    with pytest.raises(ValueError, match="divide by 255"):
        Reference(255 * kept.images, kept.index, {})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        StoredReference(str(path))


def test_a_threshold_refuses_what_it_was_not_calibrated_for(tmp_path: Path) -> None:
    detector = GroupMMD(GaussianKernel(3.0), "unbiased", reference())
    clean = detector.statistic(images(80, seed=2), 2, stream(80))
    threshold = read_threshold(calibrated(clean, 0.1, detector, 2).write(tmp_path / "threshold.json"))
    assert int(threshold.fires(clean, detector, 2).sum()) == 3  # 41 x 0.9 = 36.9: the 37th of 40 is not exceeded
    with pytest.raises(ValueError, match="is of groups of 2, not of 4"):
        threshold.fires(clean, detector, 4)
    with pytest.raises(ValueError, match="another reference"):
        threshold.fires(clean, GroupMMD(GaussianKernel(3.0), "unbiased", reference(6, seed=8)), 2)
    for other in (
        GroupMMD(GaussianKernel(2.0), "unbiased", reference()),
        GroupMMD(GaussianKernel(3.0), "biased", reference()),
    ):
        with pytest.raises(ValueError, match="another statistic than this GroupMMD"):
            threshold.fires(clean, other, 2)
    with pytest.raises(ValueError, match="at least 99"):
        calibrated(clean, 0.01, detector, 2)
    with pytest.raises(FileNotFoundError, match="no threshold"):
        read_threshold(tmp_path / "none.json")


def test_a_calibrated_threshold_holds_its_rate_on_fresh_statistics() -> None:
    values = NoiseStream(0, torch.arange(2000)).normal((20,), dtype=torch.float64)
    fired = [float(row[19]) > conformal_quantile(row[:19], 0.05) for row in values]
    assert abs(sum(fired) / 2000 - 0.05) < 4 * (0.05 * 0.95 / 2000) ** 0.5


def test_a_statistic_of_another_shape_is_refused() -> None:
    class Whole(Detector):
        def statistic(self, x: torch.Tensor, noise: NoiseStream) -> torch.Tensor:
            return x.mean()

    with pytest.raises(ValueError, match="one of groups is a GroupDetector"):
        Whole(None)(images(2), stream(2))


def test_images_of_another_shape_than_the_reference_are_refused() -> None:
    other, said = images(4, (1, 5, 5)), r"of shape \(1, 5, 5\), and its reference has images of shape \(1, 4, 4\)"
    with pytest.raises(ValueError, match=said):
        sample_mmd()(other, stream(4))
    with pytest.raises(ValueError, match=said):
        group_mmd().statistic(other, 2, stream(4))
