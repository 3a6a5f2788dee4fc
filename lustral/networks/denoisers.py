"""Denoisers made of a network and its preconditioner."""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from lustral.diffusion import Denoiser
from lustral.diffusion.schedules import coefficient
from lustral.networks.preconditioners import Preconditioner, Scales


class Question(NamedTuple):
    """The input of a network at (x_t, t), scaled image and time label, and the scales that turn its output into a
    posterior mean."""

    x: Tensor
    label: Tensor
    alpha: Tensor
    ratio: Tensor
    scales: Scales


class PreconditionedDenoiser(Denoiser):
    """A network F(c_in x, label) as the posterior mean c_skip x + c_out F, on any schedule.

    With r = sigma / alpha the noise ratio at t, x = x_t / alpha is the image at its own scale with noise of standard
    deviation r; the network needs nothing else, so it can be used on any schedule.

    Attributes:
        preconditioner: computes the scales and the label.
    """

    preconditioner: Preconditioner

    @abstractmethod
    def evaluate(self, x: Tensor, label: Tensor) -> Tensor:
        """The output of the bare network, (B, C, H, W), for scaled images (B, C, H, W) and time labels (B,)."""

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        asked = self.question(x_t, t)
        return self.mean(x_t, asked, self.evaluate(asked.x, asked.label))

    def noise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(x - D) / r, computed from the scales in float64: computed from x_0, it would lose digits at small sigma."""
        asked = self.question(x_t, t)
        out = coefficient(-asked.scales.out / asked.ratio, x_t) * self.evaluate(asked.x, asked.label)
        return coefficient((1.0 - asked.scales.skip) / (asked.ratio * asked.alpha), x_t) * x_t + out

    def question(self, x_t: Tensor, t: Tensor) -> Question:
        """The input of the network at ``x_t`` (B, C, H, W) and ``t``, () or (B,)."""
        alpha, ratio = self.schedule.alpha(t), self.schedule.noise_ratio(t)
        scales = self.preconditioner.scales(ratio)
        # At least float32: half precision would round index 997 to 996.
        label = self.preconditioner.label(ratio).to(torch.promote_types(x_t.dtype, torch.float32))
        label = label.to(x_t.device, non_blocking=True).expand(len(x_t))
        return Question(coefficient(scales.into / alpha, x_t) * x_t, label, alpha, ratio, scales)

    def mean(self, x_t: Tensor, asked: Question, answer: Tensor) -> Tensor:
        """The posterior mean at ``x_t``, from the network's output ``answer`` (B, C, H, W) to the input ``asked``."""
        out = coefficient(asked.scales.out, x_t) * answer
        return coefficient(asked.scales.skip / asked.alpha, x_t) * x_t + out
