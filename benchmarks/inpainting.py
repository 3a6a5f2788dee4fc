"""Resampling by many steps or in one hop, on a given square of digits: `python -m benchmarks.inpainting`.

Figure 3 of Pei et al., "Divide and conquer", CVPR 2025: does what is generated inside of a mask fit the outside? The
square is noised to a level at which nothing of it is left, and the rest so little that it stays. Writes a picture, and
prints network calls, seconds an image, the PSNR inside the square, and how often the classifier knows the digit.
"""

from lustral import environment  # noqa: F401, I001

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from datamodules import Digits
from lustral.command_line import Parser
from lustral.evaluation import wilson
from lustral.evaluation.image_quality import psnr
from lustral.evaluation.levels import mean
from lustral.networks import Classifier, load_classifier, load_denoiser
from lustral.noise import NoiseStream
from lustral.purifiers import HeterogeneousNoise, Mask
from lustral.purifiers.masks import Activations
from lustral.purifiers.resampling import Resample
from lustral.reporting import Caption, panel_figure

METHODS: tuple[Resample, ...] = ("multi_step", "one_hop")
ROUNDS = (0, 1, 10, 20)
T_LARGE, T_SMALL, STEPS = 900, 10, (20, 2)


class SquareMask(Mask):
    """A square in the middle, whatever the image shows.

    Args:
        share: its side, as a share of the image's.
    """

    def __init__(self, share: float = 0.5) -> None:
        self.share = share

    def __call__(self, x: Tensor, size: tuple[int, int], activations: Activations, noise: NoiseStream) -> Tensor:
        return self.pixels(size).to(x.dtype).expand(len(x), 1, *size)

    def pixels(self, size: tuple[int, int]) -> Tensor:
        """(H, W) bool, the inside."""
        mask = torch.zeros(size, dtype=torch.bool)
        top, left = (round(side * (1 - self.share) / 2) for side in size)
        mask[top : size[0] - top, left : size[1] - left] = True
        return mask


def purifiers(denoiser: torch.nn.Module, jump_length: float) -> dict[tuple[Resample, int], HeterogeneousNoise]:
    """The purifier of each method and U; without resampling the methods are one."""
    return {
        (method, rounds): HeterogeneousNoise(
            denoiser,  # type: ignore[arg-type]
            SquareMask(),
            T_LARGE,
            T_SMALL,
            STEPS,
            resample=method,
            num_resamples=rounds,
            jump_length=jump_length,
            eta=1.0,
        )
        for rounds in ROUNDS
        for method in METHODS
        if rounds or method == METHODS[0]
    }


def main(words: Sequence[str]) -> None:
    parser = Parser(prog="benchmarks.inpainting", description="Inpainting of digits by two ways of resampling.")
    parser.add_argument("--images", type=int, default=100, help="measured; the first eight are shown")
    parser.add_argument("--output", type=Path, default=Path("runs/figures/inpainting.png"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--jump_length", type=float, default=1.0, help="noising steps of each of one_hop's U rounds")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    data = Digits(num_test=options.images)
    data.setup("test")
    images, labels = data.test_images(data.test_indices), torch.as_tensor(data.test_source.labels[data.test_indices])
    noise = NoiseStream(0, torch.tensor(data.test_indices)).fork("inpainting")
    classifier = load_classifier("runs/train/digits_classifier/weights.safetensors").eval()
    denoiser = load_denoiser("runs/train/digits_diffusion/weights.safetensors").eval()
    rows, captions = _given(images), {}
    print(f"{'resampling':<12}{'U':>3}{'calls':>7}{'ms an image':>13}   PSNR inside, dB        digits known")
    for (method, rounds), purifier in purifiers(denoiser, options.jump_length).items():
        if method not in options.methods:
            continue
        calls = len(purifier.hops)
        start = time.perf_counter()
        with torch.no_grad():
            found = purifier(images, noise).images[0].clamp(0, 1)
        milliseconds = 1000 * (time.perf_counter() - start) / len(images)
        known, inside = _measured(classifier, images, labels, found)
        name = f"{method if rounds else 'none'}"
        print(f"{name:<12}{rounds:>3}{calls:>7}{milliseconds:>13.1f}   {inside:<22}{known}", flush=True)
        row = f"{name.replace('_', ' ')}\nU = {rounds}\n{calls} calls"
        rows[row], captions[row] = found[:8], _captions(classifier, found[:8], labels[:8])
    figure = panel_figure({k: v[:8] for k, v in rows.items()}, [str(int(each)) for each in labels[:8]], captions)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=160)
    print(f"n = {len(images)}, 95 % intervals; {options.output}")


def _given(images: Tensor) -> dict[str, Tensor]:
    return {"image": images, "given": images.masked_fill(_inside(images), 0.5)}


def _inside(images: Tensor) -> Tensor:
    return SquareMask().pixels((images.shape[-2], images.shape[-1]))


def _measured(classifier: Classifier, images: Tensor, labels: Tensor, found: Tensor) -> tuple[str, str]:
    """The share of the digits that are known, and the PSNR over the pixels of the square, with intervals."""
    with torch.no_grad():
        right = (classifier(found).argmax(1) == labels).double()
    inside = _inside(images)
    of_square = psnr(found[..., inside][..., None], images[..., inside][..., None])
    level = mean(of_square.double().tolist())
    return str(wilson(float(right.sum()), len(right))), f"{level.value:.1f} [{level.low:.1f}, {level.high:.1f}]"


def _captions(classifier: Classifier, found: Tensor, labels: Tensor) -> list[Caption]:
    with torch.no_grad():
        classes = classifier(found).argmax(1)
    return [Caption(str(int(one)), bool(one == label)) for one, label in zip(classes, labels, strict=True)]


if __name__ == "__main__":
    main(sys.argv[1:])
