"""Squared MMD between a group of images and a reference: the statistic of DAD."""

import torch
from torch import Tensor

from lustral.detectors.base import GroupDetector
from lustral.detectors.kernels import Embedded, Kernel
from lustral.detectors.mmd import Estimator, combined
from lustral.detectors.reference import Reference
from lustral.noise import NoiseStream


class GroupMMD(GroupDetector):
    """The squared MMD of a group against the reference, whose size is independent of the group's.

    Zhang et al., "One stone, two birds: enhancing adversarial defense through the lens of distributional discrepancy"
    (ICML 2025) deploy the biased one against as many reference images as the batch has.

    Args:
        kernel: the kernel, trained or with the median heuristic: bandwidths that are open are the median squared
            distance between reference images.
        estimator: "unbiased", or "biased" for parity: its mean on clean groups depends on the size of the group.
        reference: clean images; None: given later (`refer`).
    """

    def __init__(self, kernel: Kernel, estimator: Estimator = "unbiased", reference: None | Reference = None) -> None:
        super().__init__(reference)
        if estimator not in ("unbiased", "biased"):
            raise ValueError(f"estimator is {estimator!r}; it may be unbiased or biased.")
        self.kernel = kernel.eval().requires_grad_(False)
        self.estimator: Estimator = estimator
        self._known: tuple[Embedded, Tensor] | None = None

    def refer(self, reference: Reference) -> None:
        super().refer(reference)
        self._known = None

    def ready(self, device: torch.device | str) -> None:
        self.compared(torch.empty(0, device=device))

    def embed(self, x: Tensor, noise: NoiseStream) -> Embedded:
        self.compared(x)  # sets bandwidths that are open
        return self.runtime.call(self.kernel.embed, x)

    def of_group(self, embedded: Embedded) -> Tensor:
        reference, k_rr = self.compared(next(iter(embedded.values())))
        own, cross = self.kernel.gram(embedded, embedded), self.kernel.gram(reference, embedded)
        return combined(self.estimator, k_rr, own, cross)

    def compared(self, like: Tensor) -> tuple[Embedded, Tensor]:
        """The embedded reference and its Gram matrix, computed once, on the device of ``like``."""
        if self._known is None or self._known[1].device != like.device:
            images = self.referred().images.to(like.device)
            with torch.no_grad():
                self.kernel.adapt(images, images)
                embedded = self.runtime.call(self.kernel.embed, images)
                self._known = embedded, self.kernel.gram(embedded, embedded)
        return self._known
