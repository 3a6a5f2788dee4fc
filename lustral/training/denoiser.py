"""The loss of DAD's denoiser: the discrepancy between clean and denoised images, and the classifier's cross-entropy."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lustral.detectors import Estimator, Kernel
from lustral.detectors.mmd import combined, grams
from lustral.noise import NoiseStream
from lustral.purifiers.pixel_noise import NoiseKind, check_noise, noised


class DenoiserTerms(NamedTuple):
    """The terms of a batch: ``discrepancy`` () float64 (None of a single image), and for each image its
    ``cross_entropy`` (B,) and the ``logits`` (B, K) behind the denoiser."""

    discrepancy: Tensor | None
    cross_entropy: Tensor
    logits: Tensor


class DenoiserLoss:
    """MMD^2(X, g(X')) + alpha * mean CE(h(g(X')), y), with X' the noised adversarial images, g the denoiser and h the
    frozen classifier (DAD, the equation of its "first bird").

    The discrepancy is that of the batch, the one loss here that couples its images: the clean images are those that the
    adversarial ones were made of, as in the authors' code.

    Args:
        alpha: weight of the cross-entropy. (The code's first releases had CE + 100 MMD^2, the same ratio as 0.01.)
        estimator: "biased", the V-statistic as published, or "unbiased" (see `lustral.detectors.mmd`).
        noise_std: nominal standard deviation of the noise before the denoiser, in the [0, 1] pixel range.
        noise_kind: "rectified" as in the authors' code, or "symmetric" (see `NoiseKind`).

    Raises:
        ValueError: if an option is out of its range.
    """

    def __init__(
        self,
        alpha: float = 0.01,
        estimator: Estimator = "biased",
        noise_std: float = 0.25,
        noise_kind: NoiseKind = "rectified",
    ) -> None:
        check_noise(noise_std, noise_kind)
        if not alpha >= 0:
            raise ValueError(f"alpha is {alpha}; it cannot be negative.")
        if estimator not in ("biased", "unbiased"):
            raise ValueError(f"estimator is {estimator!r}; it may be biased or unbiased.")
        self.alpha, self.noise_std = alpha, noise_std
        self.estimator: Estimator = estimator
        self.noise_kind: NoiseKind = noise_kind

    def terms(
        self,
        denoiser: nn.Module,
        classifier: nn.Module,
        kernel: Kernel,
        clean: Tensor,
        attacked: Tensor,
        y: Tensor,
        noise: NoiseStream,
    ) -> DenoiserTerms:
        """The terms, with a graph to the denoiser's parameters.

        Args:
            denoiser: the network that is trained.
            classifier: the frozen victim.
            kernel: frozen.
            clean: (B, C, H, W) in [0, 1].
            attacked: (B, C, H, W) in [0, 1], the adversarial images.
            y: (B,) labels.
            noise: B rows.
        """
        denoised = denoiser(noised(attacked, noise, self.noise_std, self.noise_kind))
        logits = classifier(denoised)
        discrepancy = None
        if len(clean) > 1:  # nothing can be said of how one image is distributed
            with torch.no_grad():
                reference = kernel.embed(clean)
            discrepancy = combined(self.estimator, *grams(kernel, reference, kernel.embed(denoised)))
        return DenoiserTerms(discrepancy, F.cross_entropy(logits, y, reduction="none"), logits)

    def total(self, terms: DenoiserTerms) -> Tensor:
        """() the loss."""
        loss = self.alpha * terms.cross_entropy.mean()
        return loss if terms.discrepancy is None else terms.discrepancy.to(loss.dtype) + loss
