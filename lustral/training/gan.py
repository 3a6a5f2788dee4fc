"""The losses of a generative adversarial network, image by image."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lustral.diffusion import Generator


class GANLosses(NamedTuple):
    """(B,) each.

    Attributes:
        fooling: the generator's; its gradient reaches the generator alone.
        telling: the discriminator's; its gradient reaches the discriminator alone.
    """

    fooling: Tensor
    telling: Tensor


def gan_losses(generator: Generator, discriminator: nn.Module, x: Tensor, z: Tensor) -> GANLosses:
    """The non-saturating losses of Goodfellow et al. (2014): softplus(-D(G(z))), and softplus(-D(x)) +
    softplus(D(G(z))).

    Each network's gradient is that of its own loss, so both may be summed and descended in one step: simultaneous
    gradient descent, which converges with `gradient_penalty` (Mescheder et al. 2018).

    Args:
        generator: from latents to images.
        discriminator: gives (B,) logits of images.
        x: (B, C, H, W) real images in [0, 1].
        z: (B, *latent_shape) latents.
    """
    drawn = generator(z)
    held = {name: values.detach() for name, values in discriminator.named_parameters()}
    fooling = F.softplus(-functional_call(discriminator, held, (drawn,)))
    telling = F.softplus(-discriminator(x)) + F.softplus(discriminator(drawn.detach()))
    return GANLosses(fooling, telling)


def gradient_penalty(discriminator: nn.Module, x: Tensor, weight: float) -> Tensor:
    """(B,) R1 (Mescheder et al. 2018, equation 9): weight / 2 times the squared norm of the discriminator's gradient at
    real images ``x`` (B, C, H, W) in [0, 1]."""
    at = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(discriminator(at).sum(), at, create_graph=True)
    return 0.5 * weight * slope.square().flatten(1).sum(1)
