"""The observation of CMAP: what its table is made of, and the whole on small networks."""

from pathlib import Path

import pytest
import torch

from benchmarks.perturbation_of_sets import alternating, compared, kernel_test, main, mean_test
from lustral.detectors import GaussianKernel, mmd
from lustral.networks import GANGenerator, save_network
from tests.contracts import generator, images


def test_the_test_of_means_is_one_of_means() -> None:
    draw = torch.randn(80, generator=generator(), dtype=torch.float64)
    a, b = draw[:40], draw[40:]
    assert mean_test(a, b) > 0.05
    assert mean_test(a, b + 2.0) == pytest.approx(1 / 2001)
    wide = (a - a.mean()) * 30 + b.mean()
    assert mean_test(wide, b) > 0.5, "of another spread, but of the same mean"
    assert mean_test(a, b) == mean_test(1000 * a - 7, 1000 * b - 7)


def test_both_halves_have_every_class_alike() -> None:
    y = torch.tensor([1, 6, 1, 1, 6, 2, 1, 6])
    assert alternating(y).tolist() == [True, True, False, True, False, True, False, True]


def test_a_discrepancy_is_the_unbiased_mmd() -> None:
    a, b, kernel = images(12), images(9, seed=3), GaussianKernel(bandwidth=2.0)
    statistic, p = kernel_test(kernel, a, b)
    assert statistic == pytest.approx(float(mmd(kernel, a, b).detach()), abs=1e-12)
    assert p > 0.05
    assert kernel_test(kernel, a, 1 - 0.2 * b)[1] < 0.01


def test_a_set_is_compared_by_its_mean() -> None:
    reference, other = images(30), images(30, seed=1) + 0.3
    found = compared(reference, other, lambda x: x.double().flatten(1).sum(1), [GaussianKernel(bandwidth=2.0)])
    scores = other.double().flatten(1).sum(1)
    assert found.mean == pytest.approx(float(scores.mean()))
    assert found.high - found.low == pytest.approx(2 * 1.96 * float(scores.std()) / 30**0.5)
    assert found.p < 0.001
    assert found.discrepancies[0][1] < 0.001


def test_the_table_has_every_set_and_says_what_is_missing(
    tmp_path: Path, digit_weights: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"There is no .*digits_classifier.*configs/train/digits_classifier.yaml"):
        main(["--runs", str(tmp_path)])
    for run, file in (("digits_classifier", "classifier"), ("digits_diffusion", "denoiser")):
        (tmp_path / run).mkdir()
        (tmp_path / run / "weights.safetensors").symlink_to(digit_weights[file])
    save_network(GANGenerator(8, 1, 4, [4, 4]), tmp_path / "digits_gan" / "weights.safetensors")
    picture = tmp_path / "picture.png"
    words = ["--images", "12", "--steps", "1", "--eps", "0.1", "--picture", str(picture)]
    found = main(["--runs", str(tmp_path), *words])
    assert list(found) == ["clean", "diffusion model", "GAN", "adversarial, 0.1", "random signs, 0.1"]
    printed = capsys.readouterr().out
    assert "Left out: consistency model" in printed
    assert "configs/train/digits_consistency.yaml" in printed
    assert "12 images a set, 12 in the reference" in printed
    assert picture.is_file()
