"""Input transformations against the real codec, and against formulas written down again."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lustral.purifiers import JPEG, BitDepth, GaussianBlur, Purifier, Variant
from tests.contracts import generator, images, stream


def _purified(purifier: Purifier, x: Tensor) -> Tensor:
    with torch.no_grad():
        return purifier(x, stream(len(x))).images[0]


def _smooth(batch: int, shape: tuple[int, int, int]) -> Tensor:
    """Images without much detail, as photographs are."""
    channels, height, width = shape
    coarse = torch.rand(batch, channels, height // 8 + 1, width // 8 + 1, generator=generator())
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 13, 22)])
def test_jpeg_is_the_codec(shape: tuple[int, int, int]) -> None:
    x = images(4, shape)
    found = _purified(JPEG(60), x)
    for image, made in zip(x, found, strict=True):
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze()).save(file, "JPEG", quality=60)
        expected = np.asarray(Image.open(file)).reshape(pixels.shape)
        assert np.array_equal((made * 255).round().byte().permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize(
    ("shape", "smooth", "noisy"),
    [((1, 8, 8), 0.5, 1.0), ((1, 28, 30), 0.5, 1.0), ((3, 32, 32), 1.0, 2.5), ((3, 28, 30), 1.0, 2.5)],
    ids=["digits", "gray", "colour", "odd"],
)
def test_the_stand_in_is_near_the_codec(quality: int, shape: tuple[int, int, int], smooth: float, noisy: float) -> None:
    """In 256ths of the pixel range on average: a tenth or less of what the codec itself changes on noise. Soft rounding
    is further away, but nearer than the image is."""
    for x, bound in ((_smooth(16, shape), smooth), (torch.rand(16, *shape, generator=generator()), noisy)):
        real, near, soft = (_purified(JPEG(quality, of), x) for of in ("codec", "straight_through", "soft"))  # type: ignore[arg-type]
        assert 255 * (near - real).abs().mean() < bound
        assert (soft - real).abs().mean() < 0.65 * (x - real).abs().mean()
        if bound == noisy and quality < 95:
            assert (near - real).abs().mean() < 0.1 * (x - real).abs().mean()


def test_the_stand_in_without_rounding_changes_a_gray_image_by_nothing() -> None:
    """Its transform is orthonormal: the gradient straight through is that of the identity."""
    leaf = images(2, (1, 11, 16), dtype=torch.float64).requires_grad_()
    weights = images(2, (1, 11, 16), seed=3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((JPEG(40, "straight_through")(leaf, stream(2)).images * weights).sum(), leaf)
    torch.testing.assert_close(gradient[:, :, :8], weights[:, :, :8])  # the lower blocks are filled with copies


def test_a_clamped_background_keeps_its_gradient_straight_through() -> None:
    """Without it, attacks on digits were weaker than those on the bare classifier."""
    x = torch.zeros(1, 1, 8, 8)
    x[..., 2:6, 3:5] = 1.0
    leaf = x.requires_grad_()
    out = JPEG(30, "straight_through")(leaf, stream(1)).images
    assert ((out == 0) | (out == 1)).float().mean() > 0.1
    (gradient,) = torch.autograd.grad((out * images(1, (1, 8, 8))).sum(), leaf)
    torch.testing.assert_close(gradient, images(1, (1, 8, 8)))


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_bit_depth_is_exact(bits: int) -> None:
    x = torch.cat((images(3), torch.linspace(0, 1, 16).view(1, 1, 4, 4)))
    found, top = _purified(BitDepth(bits), x), 2**bits - 1
    allowed = torch.arange(top + 1) / top
    assert torch.isin(found, allowed).all()
    assert ((found - x).abs() <= 0.5 / top + 1e-6).all(), "the nearest"
    assert torch.equal(_purified(BitDepth(bits, "straight_through"), x), found)
    assert (_purified(BitDepth(bits, "soft"), x) - found).abs().max() <= 0.125 / top + 1e-6


def test_blur_is_a_gaussian_window() -> None:
    x, at = images(2, (3, 9, 9), dtype=torch.float64), torch.arange(-2, 3, dtype=torch.float64)
    line = (-0.5 * (at / 0.7) ** 2).exp()
    window = torch.outer(line, line) / line.sum() ** 2
    padded = F.pad(x, (2, 2, 2, 2), mode="reflect")
    expected = sum(window[i, j] * padded[..., i : i + 9, j : j + 9] for i in range(5) for j in range(5))
    torch.testing.assert_close(_purified(GaussianBlur(0.7, 2), x), torch.as_tensor(expected))


@pytest.mark.parametrize("purifier", [JPEG(), BitDepth(2)])
def test_a_variant_is_differentiated_in_the_place_of_a_rounding(purifier: Purifier) -> None:
    leaf = images(3).requires_grad_()
    with pytest.raises(ValueError, match=r"no 'exact' gradient.*Variant of changes {rounding: straight_through}"):
        purifier(leaf, stream(3))
    for rounding in ("straight_through", "soft"):
        images_of = Variant({"rounding": rounding}).of(purifier)(leaf, stream(3)).images
        (gradient,) = torch.autograd.grad(images_of.sum(), leaf)
        assert gradient.abs().max() > 0


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: JPEG(0), "quality is 0; it lies in 1..100"),
        (lambda: JPEG(75, "hard"), "rounding is 'hard'; it may be codec, straight_through, soft"),  # type: ignore[arg-type]
        (lambda: _purified(JPEG(), images(2, (2, 8, 8))), "1 or 3 channels, and these images have 2"),
        (lambda: BitDepth(9), "bits is 9; it lies in 1..8"),
        (lambda: BitDepth(2, "codec"), "rounding is 'codec'; it may be hard, straight_through, soft"),  # type: ignore[arg-type]
        (lambda: GaussianBlur(0.0), "sigma = 0.0 must be positive"),
        (lambda: _purified(GaussianBlur(1.0, 4), images(2)), "radius is 4, but images of 4 x 4 pixels"),
    ],
)
def test_what_a_transformation_cannot_do_is_refused(make: Callable[[], object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()
