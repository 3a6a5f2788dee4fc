"""Detectors of single images: a kernel density score against a reference, of pixels or of perturbation scores."""

import torch
from torch import Tensor

from lustral.detectors.base import Detector
from lustral.detectors.kernels import Embedded, Kernel
from lustral.detectors.reference import Reference
from lustral.diffusion import Denoiser, to_diffusion
from lustral.diffusion.perturbation import PerturbationScore, perturbation_map
from lustral.noise import NoiseStream


def density_score(k_rr: Tensor, k_rx: Tensor) -> Tensor:
    """(B,): mean_ij k(r_i, r_j) - 2 mean_i k(r_i, x) + 1, the biased squared MMD between the reference and x alone, for
    kernels with k(x, x) = 1.

    A constant minus a kernel density estimate. Args: ``k_rr`` (n, n) within the reference, ``k_rx`` (n, B).
    """
    return k_rr.mean() - 2.0 * k_rx.mean(0) + 1.0


class _Density(Detector):
    """What both scores share: a kernel on maps of images."""

    def __init__(self, kernel: Kernel, reference: Reference | None) -> None:
        super().__init__(reference)
        self.kernel = kernel.eval().requires_grad_(False)
        self._known: tuple[Embedded, Tensor] | None = None

    def refer(self, reference: Reference) -> None:
        super().refer(reference)
        self._known = None

    def ready(self, device: torch.device | str) -> None:
        self._compared(torch.empty(0, device=device))

    def maps(self, x: Tensor, noise: NoiseStream) -> Tensor:
        """(B, C, H, W): what the kernel compares."""
        return x

    def statistic(self, x: Tensor, noise: NoiseStream) -> Tensor:
        reference, k_rr = self._compared(x)

        def scored(maps: Tensor) -> Tensor:
            return density_score(k_rr, self.kernel.gram(reference, self.kernel.embed(maps)))

        return self.runtime.call(scored, self.maps(x, noise))

    def _compared(self, x: Tensor) -> tuple[Embedded, Tensor]:
        """The embedded reference and its Gram matrix, computed once."""
        if self._known is None or self._known[1].device != x.device:
            reference = self.referred()
            images = reference.images.to(x.device)
            with torch.no_grad():
                # Streams of the reference are told from those of tested images by their path.
                noise = NoiseStream(0, reference.index.to(x.device)).fork("reference")
                maps = self.maps(images, noise)
                self.kernel.adapt(maps, maps)
                embedded = self.runtime.call(self.kernel.embed, maps)
                self._known = embedded, self.kernel.gram(embedded, embedded)
        return self._known


class SampleMMD(_Density):
    """The squared MMD between the reference and one image.

    Args:
        kernel: of images, trained or with the median heuristic.
        reference: clean images; None: given later (`refer`).
    """

    def __init__(self, kernel: Kernel, reference: None | Reference = None) -> None:
        super().__init__(kernel, reference)


class PerturbationMMD(_Density):
    """The detector of Zhang et al., "Detecting adversarial data by probing multiple perturbations using expected
    perturbation score" (ICML 2023): the squared MMD between an image's expected perturbation score, a map of the
    image's shape, and those of the reference.

    Args:
        denoiser: the diffusion model.
        score: the perturbation score: `lustral.diffusion.EPS` with 20 times (CIFAR-10) or 50 (ImageNet).
        kernel: of the maps; a Gaussian one with the median heuristic does as well as a trained one on CIFAR-10.
        reference: clean images, which neither the denoiser nor a kernel was trained on; None: given later (`refer`).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        score: PerturbationScore,
        kernel: Kernel,
        reference: None | Reference = None,
    ) -> None:
        super().__init__(kernel, reference)
        self.denoiser, self.score = denoiser.eval().requires_grad_(False), score

    def maps(self, x: Tensor, noise: NoiseStream) -> Tensor:
        stream = noise.fork("perturbation")
        return perturbation_map(self.score, self.denoiser, to_diffusion(x), stream, self.runtime.call)


class PerturbationNorm(Detector):
    """The norm of the perturbation score, as SSNI weighs images by it; it compares with nothing.

    Args:
        denoiser: the diffusion model.
        score: the perturbation score.
    """

    def __init__(self, denoiser: Denoiser, score: PerturbationScore) -> None:
        super().__init__(None)
        self.denoiser, self.score = denoiser.eval().requires_grad_(False), score

    @property
    def needs_reference(self) -> bool:
        return False

    def statistic(self, x: Tensor, noise: NoiseStream) -> Tensor:
        stream = noise.fork("perturbation")
        found = perturbation_map(self.score, self.denoiser, to_diffusion(x), stream, self.runtime.call)
        return found.double().flatten(1).norm(dim=1)
