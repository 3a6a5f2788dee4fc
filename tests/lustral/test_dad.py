"""DAD: what its groups are compared with, which branch they take, and that nothing else decides."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lustral.attacks import Engine
from lustral.detectors import Detector, GaussianKernel, GroupMMD, StoredThreshold, calibrated, mmd
from lustral.evaluation import Defence
from lustral.networks import DUNet
from lustral.noise import NoiseStream
from lustral.purifiers import DAD, DADPerSample, Denoise, Variant
from lustral.purifiers.pixel_noise import noised
from tests.contracts import Reveal, ToyClassifier, central_differences, images, relative_error, stream
from tests.toys.detection import SHAPE, SmoothNetwork, bright, dad, group_mmd, kernel, reference, sample_mmd

MIXED = torch.cat((images(4, SHAPE, 3), bright(4), images(4, SHAPE, 5)))
"""Three groups, the second of which is unlike the reference."""


def _statistics(estimator: str = "unbiased") -> torch.Tensor:
    groups = MIXED.split(4)
    return torch.stack([mmd(kernel(), reference().images, group, estimator).detach() for group in groups])  # type: ignore[arg-type]


def _between() -> float:
    low, high = _statistics()[[0, 2]].amax(), _statistics()[1]
    assert high > low
    return float(low + high) / 2


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_the_statistic_is_the_discrepancy_of_the_group(estimator: str) -> None:
    purifier = dad(0.05, estimator=estimator)
    trace = purifier(MIXED, stream(12), wants=["statistic", "alarm", "detected"]).trace
    torch.testing.assert_close(trace["statistic"], _statistics(estimator).repeat_interleave(4), atol=1e-10, rtol=0)
    assert torch.equal(trace["alarm"], trace["statistic"] / 0.05)
    assert torch.equal(trace["detected"], trace["statistic"] > 0.05)


def test_a_group_above_the_threshold_is_denoised_and_the_others_are_left() -> None:
    purifier, noise = dad(_between()), stream(12)
    found = purifier(MIXED, noise).images[0]
    assert torch.equal(found[:4], MIXED[:4])
    assert torch.equal(found[8:], MIXED[8:])
    alone = Denoise(SmoothNetwork())(MIXED[4:8], noise.select(torch.arange(4, 8))).images[0]
    torch.testing.assert_close(found[4:8], alone)


def test_nothing_outside_a_group_changes_a_bit_of_it() -> None:
    engine, noise = Engine(Defence(ToyClassifier(), dad(_between())), 8), stream(12)
    together = engine.logits(MIXED, noise, 2)
    for groups in ([1], [2, 1], [1, 0, 2]):
        rows = torch.cat([torch.arange(4 * g, 4 * g + 4) for g in groups])
        assert torch.equal(engine.logits(MIXED[rows], noise.select(rows), 2), together[:, rows])


def test_one_image_decides_for_its_neighbours_in_a_group_and_for_none_image_by_image() -> None:
    """The weakness that the group has, and its variant has not."""
    x = torch.cat((MIXED[:2], bright(2)))
    groups, single = dad(float(_statistics()[0])), DADPerSample(Denoise(SmoothNetwork()), sample_mmd(), 0.0)
    clean = MIXED[:4]
    assert not groups(clean, stream(4), wants=["detected"]).trace["detected"].any()
    assert groups(x, stream(4), wants=["detected"]).trace["detected"].all()
    scores = [single(batch, stream(4), wants=["statistic"]).trace["statistic"] for batch in (clean, x)]
    assert torch.equal(scores[0][:2], scores[1][:2])


def test_attacks_may_follow_either_branch_or_both() -> None:
    purifier, noise = dad(0.0), stream(4).repeat(4)
    x = MIXED[:4].repeat(4, 1, 1, 1)
    raw, denoised, both = (Variant({"route": r}).of(purifier)(x, noise).images[0] for r in ("raw", "denoised", "both"))
    assert torch.equal(raw, x)
    assert not torch.isclose(denoised, x).flatten(1).all(1).any()
    torch.testing.assert_close(both.view(4, 4, *SHAPE)[::2], x.view(4, 4, *SHAPE)[::2])
    torch.testing.assert_close(both.view(4, 4, *SHAPE)[1::2], denoised.view(4, 4, *SHAPE)[1::2])


@pytest.mark.parametrize("against", ["reference", "held"])
def test_the_statistic_has_the_derivative_that_it_claims(against: str) -> None:
    purifier = dad(0.05, against=against, route="raw").double()
    x, clean = MIXED[:8].double(), MIXED[4:].double()
    context = purifier.prepare(clean, stream(8))

    def rowwise(x: torch.Tensor) -> torch.Tensor:
        return purifier(x, stream(8), context=context, wants=["statistic"]).trace["statistic"]

    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(rowwise(leaf)[::4].sum(), leaf)
    # Central differences move one image at a time: the statistic is the group's.
    for row in (0, 5):
        only = torch.zeros_like(x)
        only[row] = 1.0

        def one(each: torch.Tensor, only: torch.Tensor = only, row: int = row) -> torch.Tensor:
            return rowwise(x + only * (each - x))[row : row + 1].expand(len(x))

        expected = central_differences(one, x)[row]
        assert relative_error(found[row], expected) < 1e-6


def test_the_authors_attack_compares_an_image_with_itself() -> None:
    """Their biased statistic of clean images against the same images is zero, and against the reference about 2/n."""
    purifier, x = dad(0.05, against="held", estimator="biased"), MIXED[:4]
    held = purifier.prepare(x, stream(4))
    assert held.keys() == purifier.holds
    paired = purifier(x, stream(4), context=held, wants=["statistic"]).trace["statistic"]
    assert float(paired.abs().max()) < 1e-12
    assert float(_statistics("biased")[0]) > 0.01


def test_a_calibrated_threshold_is_of_one_group_size_reference_and_statistic(tmp_path: Path) -> None:
    detector = group_mmd()
    clean = torch.linspace(0.001, 0.1, 99, dtype=torch.float64)
    file = str(calibrated(clean, 0.05, detector, 4).write(tmp_path / "t.json"))
    stored = StoredThreshold(file)
    assert DAD(Denoise(SmoothNetwork()), detector, stored, 4).limit == pytest.approx(float(clean[94]))
    with pytest.raises(ValueError, match="of groups of 4, not of 5"):
        DAD(Denoise(SmoothNetwork()), detector, stored, 5)
    with pytest.raises(ValueError, match="of another statistic"):
        DAD(Denoise(SmoothNetwork()), group_mmd("biased"), stored, 4)
    other = group_mmd()
    other.refer(reference(7))
    with pytest.raises(ValueError, match="of another reference"):
        DAD(Denoise(SmoothNetwork()), other, stored, 4)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="a group has at least 2 images"):
        dad(0.05, 1)
    with pytest.raises(ValueError, match="route is 'left'"):
        dad(0.05, route="left")
    with pytest.raises(ValueError, match="threshold is NaN"):
        dad(float("nan"))
    with pytest.raises(ValueError, match="an alarm is the statistic divided by"):
        dad(-float("inf"))(MIXED, stream(12), wants=["alarm"])
    with pytest.raises(ValueError, match="purifies groups of 4 images together"):
        dad(0.05)(MIXED[:6], stream(6))
    with pytest.raises(ValueError, match=r"noise_kind is 'pink'"):
        Denoise(SmoothNetwork(), 0.25, "pink")  # type: ignore[arg-type]


def test_batch_normalisation_stays_in_evaluation_mode() -> None:
    purifier = Denoise(DUNet(4, 1, (2, 2), (1, 1)))
    purifier.train()
    assert not any(module.training for module in purifier.denoiser.modules())
    before = {name: buffer.clone() for name, buffer in purifier.denoiser.named_buffers()}
    purifier(images(5, SHAPE), stream(5))
    assert all(torch.equal(buffer, before[name]) for name, buffer in purifier.denoiser.named_buffers())


def test_rectified_noise_only_brightens_and_symmetric_noise_does_not() -> None:
    noise = NoiseStream(0, torch.arange(400))
    x = torch.full((400, 1, 16, 16), 0.0)
    found = noised(x, noise, 0.25, "rectified")
    assert float(found.amin()) == 0.0
    assert float((found == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert float(found.mean()) == pytest.approx(0.0997, abs=0.001)
    assert float(found.std()) == pytest.approx(0.146, abs=0.001)
    grey = noised(x + 0.5, noise, 0.1, "symmetric")
    assert float(grey.mean()) == pytest.approx(0.5, abs=0.001)
    assert torch.equal(noised(x, noise, 0.0, "rectified"), x)


class _Plain(Reveal):
    """Purified pixels of groups."""

    group_size = 4


def test_the_detector_is_asked_in_calls_of_r_rows() -> None:
    purifier, seen = dad(_between()), list[int]()
    features: nn.Module = purifier.detector.kernel.features  # type: ignore[attr-defined]
    features.register_forward_hook(lambda module, inputs, out: seen.append(len(out)))
    Engine(_Plain(purifier), 8).logits(MIXED, stream(12))
    assert set(seen) == {8}


def test_a_bad_image_does_not_silence_the_detector(tmp_path: Path) -> None:
    x = MIXED[:4].clone()
    x[2] = torch.nan
    assert dad(1.0)(x, stream(4), wants=["detected"]).trace["detected"].all()
    detector, nan = group_mmd(), torch.tensor([torch.nan], dtype=torch.float64)
    assert calibrated(torch.linspace(0, 1, 99), 0.05, detector, 4).fires(nan, detector, 4).all()


def test_an_attack_of_one_draw_a_step_sees_both_branches() -> None:
    purifier, x = Variant({"route": "both"}).of(dad(0.0)), MIXED[:4]
    even, odd = (purifier(x, stream(4).repeat(1).at(iteration=k)).images[0] for k in (0, 1))
    assert torch.equal(even, x)
    assert not torch.isclose(odd, x).flatten(1).all(1).any()


class _Random(Detector):
    """Draws noise for its statistic."""

    def statistic(self, x: torch.Tensor, noise: NoiseStream) -> torch.Tensor:
        return noise.normal((), dtype=torch.float64)


def test_a_detector_that_draws_noise_makes_the_defence_random() -> None:
    silent, settled = Denoise(SmoothNetwork(), 0.0), sample_mmd()
    assert DADPerSample(silent, _Random(None), 0.0).random
    assert not DADPerSample(silent, settled, 0.0).random
    assert DADPerSample(Denoise(SmoothNetwork()), settled, 0.0).random


def test_the_authors_attack_takes_any_kernel() -> None:
    detector = GroupMMD(GaussianKernel(4.0), "biased", reference())
    purifier = DAD(Denoise(SmoothNetwork()), detector, 0.05, 4, "raw", "held")
    found = purifier(MIXED[:4], stream(4), context=purifier.prepare(MIXED[4:8], stream(4)), wants=["statistic"])
    expected = mmd(detector.kernel, MIXED[4:8], MIXED[:4], "biased")
    torch.testing.assert_close(found.trace["statistic"], expected.expand(4), atol=1e-10, rtol=0)
