"""Guidance by LPIPS, the distance of deep features (Zhang et al. 2018), as torchmetrics computes it."""

from torch import Tensor

from lustral.diffusion import RememberedDenoiser
from lustral.diffusion.distances import Net, coloured, lpips_network
from lustral.diffusion.inner import inner_gradient
from lustral.purifiers.guidance import Likeness, Reference, Step

SMALLEST = 32
"""Pixels of the smallest image that all of its networks take."""


class LPIPSGuidance(Likeness):
    """The gradient of minus LPIPS.

    Args:
        net: the network whose features are compared; torchvision's ImageNet weights of it must be in torch's cache,
            since nothing is downloaded in an evaluation.
        reference: with which image x_t is compared: "noised", "shared" or "clean" (see `MSEGuidance`).
        reference_batch: the divisor of the guidance, at least 1.

    Raises:
        ValueError: if an option is out of its range, or the weights are not at hand; when images are purified, if they
            are smaller than 32 pixels.
    """

    def __init__(self, net: Net = "alex", reference: Reference = "clean", reference_batch: int = 1) -> None:
        super().__init__(reference, reference_batch)
        self.net: Net = net
        self._network = lpips_network(net)
        self.parts = (self._network,)

    def __call__(self, step: Step, denoise: RememberedDenoiser) -> Tensor:
        if min(step.x_t.shape[-2:]) < SMALLEST:
            raise ValueError(f"LPIPS compares images of {SMALLEST} pixels or more: choose MSEGuidance or SSIMGuidance.")
        target = coloured(self.target(step, denoise))

        def likeness(x_t: Tensor) -> Tensor:
            return -self._network(coloured(x_t), target).flatten(1)[:, 0] / self.reference_batch

        return inner_gradient(likeness, step.x_t)
