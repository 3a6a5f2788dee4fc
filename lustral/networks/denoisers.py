"""Networks behind the Denoiser convention, by way of their preconditioner."""

from abc import abstractmethod

from torch import Tensor

from lustral.diffusion import Denoiser
from lustral.diffusion.schedules import coefficient
from lustral.networks.preconditioners import Preconditioner


class PreconditionedDenoiser(Denoiser):
    """A network F(c_in x, label) as the posterior mean c_skip x + c_out F, on any schedule.

    With r = sigma / alpha the noise ratio at t, x = x_t / alpha is the image at its own scale with noise of standard
    deviation r, which is all the network needs to know.

    Attributes:
        preconditioner: the scales and the label.
    """

    preconditioner: Preconditioner

    @abstractmethod
    def evaluate(self, x: Tensor, label: Tensor) -> Tensor:
        """The bare network: (B, C, H, W) from scaled images (B, C, H, W) and labels (B,) in its own unit."""

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, ratio = self.schedule.alpha(t), self.schedule.noise_ratio(t)
        scales = self.preconditioner.scales(ratio)
        out = coefficient(scales.out, x_t) * self._output(x_t, alpha, ratio, scales.into)
        return coefficient(scales.skip / alpha, x_t) * x_t + out

    def noise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(x - D) / r with the scales subtracted in float64: by way of x_0 a small sigma would cost digits."""
        alpha, ratio = self.schedule.alpha(t), self.schedule.noise_ratio(t)
        scales = self.preconditioner.scales(ratio)
        out = coefficient(-scales.out / ratio, x_t) * self._output(x_t, alpha, ratio, scales.into)
        return coefficient((1.0 - scales.skip) / (ratio * alpha), x_t) * x_t + out

    def _output(self, x_t: Tensor, alpha: Tensor, ratio: Tensor, into: Tensor) -> Tensor:
        label = self.preconditioner.label(ratio).to(x_t.dtype)
        label = label.to(x_t.device, non_blocking=True).expand(len(x_t))
        return self.evaluate(coefficient(into / alpha, x_t) * x_t, label)
