"""How alike two images are, image by image: PSNR, SSIM (Wang et al. 2004) and LPIPS (Zhang et al. 2018)."""

from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from lustral.purifiers.perceptual import perceptual_distance

CEILING = 100.0
"""The PSNR of equal images in dB; their PSNR would be infinite, and so would any mean with them. (An error of half a
grey level of 255 in every pixel is 54 dB.)"""
SIGMA, HALF_WINDOW = 1.5, 5
"""Standard deviation of SSIM's Gaussian window, and the pixels on each side of its middle: 11 x 11 in all."""
_CUT = 3.5
"""torchmetrics cuts the window off at 3.5 standard deviations."""


def psnr(x: Tensor, reference: Tensor) -> Tensor:
    """(B,) peak signal-to-noise ratio in dB, -10 log10 of the mean squared difference of images (B, C, H, W) in [0, 1];
    at most `CEILING`."""
    return peak_signal_noise_ratio(x, reference, data_range=1.0, reduction="none", dim=(1, 2, 3)).clamp_max(CEILING)


def ssim(x: Tensor, reference: Tensor) -> Tensor:
    """(B,) structural similarity of images (B, C, H, W) in [0, 1], the mean over the windows around every pixel.

    Beyond its edge an image is reflected (torchmetrics' choice). The window is Gaussian, 11 x 11 pixels with a standard
    deviation of 1.5. In images smaller than that it is the largest odd one that fits, its standard deviation smaller in
    proportion: 7 x 7 and 0.86 in images of 8 x 8.

    Raises:
        ValueError: if a side is shorter than 3 pixels.
    """
    half = (min(x.shape[-2:]) - 1) // 2
    if not half:
        raise ValueError(f"SSIM compares images of 3 x 3 pixels or more, not {x.shape[-2]} x {x.shape[-1]}.")
    sigma = SIGMA if half >= HALF_WINDOW else half / _CUT
    # Without a range of its own, torchmetrics takes that of the batch.
    found = structural_similarity_index_measure(x, reference, sigma=sigma, data_range=1.0, reduction="none")
    assert isinstance(found, Tensor)
    return found


def likeness(x: Tensor, reference: Tensor, network: nn.Module | None = None) -> dict[str, Tensor]:
    """(B,) each: "psnr" in dB and "ssim" of images (B, C, H, W), and "lpips" by ``network``, if there is one (see
    `lpips_network`). Images are clamped to [0, 1] before, as if they were shown: a purifier may leave it."""
    x, reference = x.clamp(0.0, 1.0), reference.clamp(0.0, 1.0)
    found = {"psnr": psnr(x, reference), "ssim": ssim(x, reference)}
    return found if network is None else {**found, "lpips": perceptual_distance(network, x, reference)}


def feature_distance(features: Tensor, reference: Tensor) -> Tensor:
    """(B,) Euclidean distance of penultimate features (B, D)."""
    return (features.double() - reference.double()).square().sum(1).sqrt()


def alignment(change: Tensor, other: Tensor) -> Tensor:
    """(B,) cosine of the angle between two changes of an image, (B, C, H, W) each; 0 where either is zero."""
    first, second = change.double().flatten(1), other.double().flatten(1)
    lengths = first.norm(dim=1) * second.norm(dim=1)
    return (first * second).sum(1) / lengths.masked_fill(lengths == 0, 1.0)
