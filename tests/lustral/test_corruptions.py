"""The 15 corruptions: closed forms, and what an image's pixels may depend on."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats
from torch import Tensor

from datamodules import Digits, StreetDigits
from lustral.corruptions import CONSTANTS, CORRUPTIONS, SEVERITIES, TYPES, CommonCorruptions
from lustral.corruptions.blurs import disk
from lustral.corruptions.digital import box_matrix, elastic_transform, pixelate
from lustral.corruptions.noises import poisson
from lustral.corruptions.pixels import (
    convolved,
    gaussian_blurred,
    motion_blurred,
    motion_taps,
    plasma,
    sampled,
    within,
    zoomed,
)
from lustral.corruptions.weather import ice
from lustral.noise import NoiseStream
from tests.contracts import images, stream

CORRUPT = CommonCorruptions()
CELLS = CORRUPT.cells


def apply(name: str, severity: int, x: Tensor, seed: int = 0, table: str = "small") -> Tensor:
    """Before it is clipped and rounded, in float64."""
    constants = CONSTANTS[table][name][severity - 1]  # type: ignore[index]
    return CORRUPTIONS[name](x.double(), constants, stream(len(x), seed).fork(name))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 16)])
@pytest.mark.parametrize("name", TYPES)
def test_an_image_depends_on_nothing_but_itself_and_its_key(name: str, shape: tuple[int, ...]) -> None:
    x, noise = images(5, shape, seed=2), stream(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    for severity in (1, 5):
        found = CORRUPT(x, name, severity, noise)
        assert found.shape == x.shape
        assert found.dtype == torch.float32
        assert torch.equal(found * 255, (found * 255).round())
        assert 0 <= found.min() <= found.max() <= 1
        assert torch.equal(CORRUPT(x[order], name, severity, noise.select(order)), found[order])
        assert torch.equal(CORRUPT(x[:1], name, severity, noise.select(order[1:2])), found[:1])


@pytest.mark.parametrize("name", TYPES)
def test_the_random_ones_follow_seed_and_index_and_no_generator(name: str) -> None:
    x, state = images(4, (1, 8, 8)), torch.get_rng_state()
    x[1:] = x[0]
    found = CORRUPT(x, name, 5, stream(4))
    assert torch.equal(torch.get_rng_state(), state)
    fixed = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
    assert torch.equal(found[0], found[1]) == (name in fixed)
    assert torch.equal(found, CORRUPT(x, name, 5, stream(4, seed=1))) == (name in fixed)
    assert torch.equal(found, CORRUPT(x, name, 5, stream(4)))


@pytest.mark.parametrize("table", ["small", "large"])
@pytest.mark.parametrize("name", TYPES)
def test_a_higher_severity_is_further_from_the_image(name: str, table: str) -> None:
    """As far as the authors' constants say so: they chose them by error, and some steps are about equal."""
    data = StreetDigits(num_train=2, num_val=1, num_test_scenes=24)
    x = data.test_images(list(range(24)))
    corrupt = CommonCorruptions(table=table)  # type: ignore[arg-type]
    noise = NoiseStream(0, torch.arange(24))
    far = [(corrupt(x, name, s, noise) - x).pow(2).mean().sqrt().item() for s in SEVERITIES]
    assert min(far) > 0
    assert far[4] > far[0] or (name, table) == ("elastic_transform", "small")
    if name not in ("elastic_transform", "snow", "glass_blur", "frost", "motion_blur"):
        assert far == sorted(far)


def test_there_are_constants_for_every_cell() -> None:
    for table in CONSTANTS.values():
        assert tuple(table) == TYPES == tuple(CORRUPTIONS)
        assert {len(rows) for rows in table.values()} == {5}
    assert len(CELLS) == 75


# Noise -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_its_variance(severity: int) -> None:
    x = torch.full((64, 1, 16, 16), 0.4)
    n = x.numel()
    gaussian, shot = (apply(name, severity, x) - 0.4 for name in ("gaussian_noise", "shot_noise"))
    (std,), (photons,) = (CONSTANTS["small"][name][severity - 1] for name in ("gaussian_noise", "shot_noise"))
    for noise, variance in ((gaussian, std**2), (shot, 0.4 / photons)):
        assert abs(noise.mean()) < 5 * math.sqrt(variance / n)
        assert noise.var() == pytest.approx(variance, rel=5 * math.sqrt(2.2 / n))
    salted, (share,) = apply("impulse_noise", severity, x), CONSTANTS["small"]["impulse_noise"][severity - 1]
    for value in (0.0, 1.0):
        assert (salted == value).double().mean() == pytest.approx(share / 2, abs=5 * math.sqrt(share / 2 / n))
    assert ((salted == x) | (salted == 0) | (salted == 1)).all()


def test_poisson_inverts_the_distribution() -> None:
    rate = torch.tensor([0.0, 0.01, 0.3, 1.0, 2.9, 12.0, 60.0, 251.3, 500.0], dtype=torch.float64)[:, None]
    uniform = torch.tensor([1e-9, 1e-4, 0.03, 0.4999, 0.77, 0.999, 1 - 1e-6, 1 - 1e-9], dtype=torch.float64)[None]
    rate, uniform = torch.broadcast_tensors(rate, uniform)
    assert poisson(rate, uniform).tolist() == stats.poisson.ppf(uniform.numpy(), rate.numpy()).tolist()


# Blur ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["small", "large"])
@pytest.mark.parametrize("name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "pixelate"])
def test_blurs_keep_a_plain_image(name: str, table: str) -> None:
    """Their kernels sum to 1, at the edges too."""
    x = torch.full((2, 3, 12, 10), 0.3)
    for severity in SEVERITIES:
        assert torch.allclose(apply(name, severity, x, table=table), x.double(), atol=1e-9)


def test_kernels_sum_to_one_and_have_their_radius() -> None:
    for table in CONSTANTS.values():
        for radius, edge in table["defocus_blur"]:
            kernel = disk(radius, edge)
            assert kernel.sum() == pytest.approx(1, abs=1e-12)
            assert torch.allclose(kernel, kernel.flip(0), atol=1e-15)
            assert torch.allclose(kernel, kernel.mT, atol=1e-15)
        for radius, sigma in table["motion_blur"]:
            assert motion_taps(radius, sigma).sum() == pytest.approx(1, abs=1e-12)
            assert len(motion_taps(radius, sigma)) == 2 * radius + 1
    assert torch.allclose(disk(1.5, 0.1)[1:-1, 1:-1], torch.full((3, 3), 1 / 9, dtype=torch.float64))


def test_a_gaussian_filter_is_scipys() -> None:
    x = images(2, (1, 7, 9), dtype=torch.float64)
    for border, mode in (("edge", "nearest"), ("symmetric", "reflect"), ("mirror", "mirror")):
        for sigma in (0.4, 1.5, 6.4):
            expected = ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode=mode, truncate=3.0)
            found = gaussian_blurred(x, sigma, border, truncate=3.0)  # type: ignore[arg-type]
            assert np.allclose(found.numpy(), expected, atol=1e-12)


def test_defocus_is_scipys_correlation() -> None:
    x = images(1, (1, 12, 9), dtype=torch.float64)
    for radius, edge in CONSTANTS["small"]["defocus_blur"]:
        expected = ndimage.correlate(x[0, 0].numpy(), disk(radius, edge).numpy(), mode="mirror")
        assert np.allclose(convolved(x, disk(radius, edge))[0, 0].numpy(), expected, atol=1e-12)


def test_zooming_is_scipys() -> None:
    x = images(1, (1, 16, 16), dtype=torch.float64)
    for factor in (1.0, 1.05, 1.25, 2.25):
        crop = math.ceil(16 / factor)
        top = (16 - crop) // 2
        expected = np.asarray(ndimage.zoom(x[0, 0, top : top + crop, top : top + crop].numpy(), factor, order=1))
        trim = (len(expected) - 16) // 2
        assert np.allclose(zoomed(x, factor)[0, 0], expected[trim : trim + 16, trim : trim + 16], atol=1e-9)


def test_motion_smears_a_point_along_its_path() -> None:
    x = torch.zeros(2, 1, 15, 15, dtype=torch.float64)
    x[:, 0, 7, 7] = 1
    found = motion_blurred(x, 3, 1.5, torch.tensor([0.0, 90.0]))[:, 0]
    taps = motion_taps(3, 1.5)
    assert torch.allclose(found[0, 7, 1:8].flip(0), taps)  # a pixel takes what lies ahead of it
    assert torch.allclose(found[1, 1:8, 7].flip(0), taps)
    assert found.sum((1, 2)).tolist() == pytest.approx([1, 1])


def test_glass_moves_values_and_makes_none() -> None:
    x = images(3, (3, 16, 16))
    moved = apply("glass_blur", 1, x)  # whose blur is nothing
    assert not torch.equal(moved, x.double())
    assert all(
        set(new.flatten().tolist()) <= set(old.double().flatten().tolist()) for new, old in zip(moved, x, strict=True)
    )
    assert torch.equal(moved[..., :2, :], x.double()[..., :2, :])  # as theirs, it leaves the first rows alone


# Weather ---------------------------------------------------------------------------------------------------


def test_brightness_adds_to_the_value_alone() -> None:
    x = 0.5 * images(2, (3, 4, 4), dtype=torch.float64)
    x[0, :, 0, 0] = 0
    found = apply("brightness", 3, x)
    assert torch.allclose(found.amax(1), x.amax(1) + 0.15)
    share = found[1] / found[1].amax(0)  # hue and saturation
    assert torch.allclose(share, x[1] / x[1].amax(0))
    assert found[0, :, 0, 0].tolist() == pytest.approx([0.15] * 3)
    grey = images(2, (1, 4, 4), dtype=torch.float64)
    assert torch.allclose(apply("brightness", 1, grey), grey + 0.05)


def test_fog_and_frost_are_their_formulas() -> None:
    x = images(3, (3, 8, 8), dtype=torch.float64)
    found, thick = apply("fog", 2, x), 0.5
    brightest = x.amax((1, 2, 3), keepdim=True)
    haze = (found * (brightest + thick) / brightest - x) / thick
    assert torch.allclose(haze, haze[:, :1].expand_as(haze))
    assert haze.amin() > -1e-9
    assert haze.amax() < 1 + 1e-9
    texture = ice(x, stream(3).fork("frost"))
    assert torch.allclose(apply("frost", 5, x), 0.75 * x + 0.45 * texture)
    assert 0 <= texture.min() < 0.2
    assert 0.6 < texture.max() <= 1
    assert (texture[:, 2] >= texture[:, 0]).all()


def test_a_plasma_is_a_torus_of_the_whole_range() -> None:
    noise = stream(3)
    drawn = [2 * noise.uniform((3, 2**i, 2**i), step=i, dtype=torch.float64) - 1 for i in range(5)]
    ground = plasma(drawn, 2.0)
    assert ground.shape == (3, 32, 32)
    assert ground.amin((1, 2)).tolist() == [0, 0, 0]
    assert ground.amax((1, 2)).tolist() == [1, 1, 1]
    along, across = (ground.diff(dim=1).abs().mean(), (ground[:, 0] - ground[:, -1]).abs().mean())
    assert across < 2 * along  # no seam
    rough = plasma(drawn, 1.2)
    assert rough.diff(dim=1).abs().mean() > 2 * along


# Digital ---------------------------------------------------------------------------------------------------


def test_contrast_is_about_the_mean_of_each_channel() -> None:
    x = images(2, (3, 6, 6), dtype=torch.float64)
    found = apply("contrast", 4, x)
    assert torch.allclose(found.mean((2, 3)), x.mean((2, 3)))
    assert torch.allclose(found.std((2, 3)), 0.3 * x.std((2, 3)))


def test_pixels_are_block_means() -> None:
    x = images(2, (1, 8, 8), dtype=torch.float64)
    means = x.unflatten(-1, (4, 2)).unflatten(-3, (4, 2)).mean((-1, -3))
    assert torch.allclose(pixelate(x, (0.5,), stream(2)), means.repeat_interleave(2, -1).repeat_interleave(2, -2))
    for size, to in ((32, 30), (32, 20), (224, 56), (20, 32)):
        assert torch.allclose(box_matrix(size, to).sum(1), torch.ones(to, dtype=torch.float64))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixels_are_pillows(severity: int) -> None:
    x = images(1, (3, 32, 32))
    picture = Image.fromarray((x[0] * 255).round().byte().movedim(0, -1).numpy())
    small = int(32 * CONSTANTS["small"]["pixelate"][severity - 1][0])
    expected = np.array(picture.resize((small, small), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX))
    found = CORRUPT(torch.from_numpy(np.array(picture)).movedim(-1, 0)[None] / 255, "pixelate", severity, stream(1))
    assert abs(found[0].movedim(0, -1).numpy() * 255 - expected).max() < 1.5  # Pillow rounds between its passes


def test_jpeg_is_the_codecs() -> None:
    x = (images(1, (3, 16, 16)) * 255).round() / 255
    file = io.BytesIO()
    Image.fromarray((x[0] * 255).round().byte().movedim(0, -1).numpy()).save(file, "JPEG", quality=50)
    assert np.allclose(CORRUPT(x, "jpeg_compression", 4, stream(1))[0].movedim(0, -1) * 255, np.array(Image.open(file)))


def test_an_elastic_map_without_shift_is_none_and_a_shift_moves() -> None:
    x = images(2, (1, 12, 12), dtype=torch.float64)
    assert torch.allclose(elastic_transform(x, (0.0, 0.0, 0.0), stream(2)), x)
    rows, columns = (torch.arange(12, dtype=torch.float64) for _ in range(2))
    at = rows[None, :, None].expand(2, 12, 12), columns[None, None].expand(2, 12, 12)
    assert torch.allclose(sampled(x, at[0], at[1] + 1.0, "edge")[..., :-1], x[..., 1:])
    assert torch.allclose(sampled(x, at[0] + 0.5, at[1], "edge")[..., :-1, :], (x[..., 1:, :] + x[..., :-1, :]) / 2)


def test_an_elastic_map_takes_the_corners_where_they_were_moved() -> None:
    """A ramp shows from where its values come: the map backwards, at the moved corners, is at the corners."""
    ramp = torch.arange(24, dtype=torch.float64)
    x = torch.stack((ramp[:, None].expand(24, 24), ramp[None].expand(24, 24)))[None] / 24
    found = elastic_transform(x, (0.0, 0.0, 0.08), stream(1)) * 24
    moved = 0.08 * 24 * (2 * stream(1).fork("affine").uniform((3, 2), dtype=torch.float64) - 1)
    corners = torch.tensor([[20.0, 20.0], [20.0, 4.0], [4.0, 4.0]], dtype=torch.float64)
    to = corners + moved[0]
    back = sampled(found, to[None, :, 1:], to[None, :, :1], "edge")[0, :, :, 0]
    assert torch.allclose(back.flip(0).mT, corners, atol=1e-6)


def test_borders_fold() -> None:
    at = torch.arange(-5, 9)
    assert within(at, 3, "edge").tolist() == [0, 0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 2]
    assert within(at, 3, "mirror").tolist() == [1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0]
    assert within(at, 3, "symmetric").tolist() == [1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1, 2]


# Choices ---------------------------------------------------------------------------------------------------


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"corruptions\.types has 'rain'; it may name some of gaussian_noise"):
        CommonCorruptions(types=["rain"])
    with pytest.raises(ValueError, match="no corruption at all"):
        CommonCorruptions(types=[])
    with pytest.raises(ValueError, match=r"severities is \[0\]; severities are 1 to 5"):
        CommonCorruptions(severities=[0])
    with pytest.raises(ValueError, match="table is 'medium'; it may be auto, small, large"):
        CommonCorruptions(table="medium")  # type: ignore[arg-type]


def test_a_choice_is_in_the_papers_order_and_changes_no_pixel() -> None:
    some = CommonCorruptions(types=["fog", "snow"], severities=[4, 2])
    assert some.cells == [("snow", 2), ("snow", 4), ("fog", 2), ("fog", 4)]
    x = Digits().test_images([3, 5])
    assert torch.equal(some(x, "fog", 4, stream(2)), CORRUPT(x, "fog", 4, stream(2)))
    large = CommonCorruptions(table="large")
    assert not torch.equal(large(x, "fog", 4, stream(2)), CORRUPT(x, "fog", 4, stream(2)))
