"""One step of the optimisation of latents, row by row: elementwise, so that no latent looks at another."""

from typing import Literal

from torch import Tensor

Optimiser = Literal["adam", "gradient"]
_SMALL = 1e-8


def adam(
    latents: Tensor,
    gradient: Tensor,
    memory: dict[str, Tensor],
    number: int,
    lr: float,
    betas: tuple[float, float],
    inside: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Step ``number`` (from 0) of Adam (Kingma and Ba 2015), and its moments "mean" and "square" afterwards.

    The epsilon of 1e-8 is added to the root, as published; or, squared, ``inside`` it, so that the step has a finite
    derivative where a gradient is 0.
    """
    mean = betas[0] * memory["mean"] + (1.0 - betas[0]) * gradient
    square = betas[1] * memory["square"] + (1.0 - betas[1]) * gradient.square()
    first, second = (1.0 - beta ** (number + 1) for beta in betas)
    root = (square / second + _SMALL**2).sqrt() if inside else (square / second).sqrt() + _SMALL
    return latents - lr / first * mean / root, {"mean": mean, "square": square}


def normalised(latents: Tensor, gradient: Tensor, lr: float) -> Tensor:
    """A step against the gradient, scaled so that each latent (B, n, ...) moves by ``lr`` in root mean square: without
    memory, and with a derivative from the very first step, where Adam's is the sign and has none."""
    size = gradient.flatten(2).square().mean(2).add(_SMALL**2).sqrt()
    return latents - lr * gradient / size.view(*size.shape, *[1] * (latents.ndim - 2))
