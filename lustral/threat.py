"""What the attacker may do to an image: a norm, a budget and the box of valid images."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from lustral.noise import NoiseStream
from lustral.ratio import Ratio, parse_ratio

_SHRINK = 1.0 - 1e-6
"""An l2 perturbation beyond its budget is scaled to this share of it: adding it to the image rounds once more."""


def _norm(x: Tensor) -> Tensor:
    """(B, 1, 1, 1) Euclidean norm of each image, in float64: over 150,528 values the rounding error of a float32 sum
    would exceed the tolerance of a budget."""
    return x.flatten(1).double().norm(dim=1)[:, None, None, None]


@dataclass(frozen=True)
class ThreatModel:
    """The set ``{x' : ||x' - x|| <= eps, low <= x' <= high}`` around each image.

    Args:
        norm: "linf" (largest change of any value) or "l2" (Euclidean norm over all pixels and channels).
        eps: the budget in units of the [0, 1] pixel range, such as 8/255 (linf) or 0.5 (l2).
        bounds: low and high, the box of valid images, within [0, 1]; clean images must lie in it.

    Raises:
        ValueError: if ``eps`` is negative, or above 1 for linf (8 instead of 8/255), or not 0 <= low < high <= 1.
    """

    norm: Literal["linf", "l2"]
    eps: Ratio
    bounds: tuple[float, float] = (0.0, 1.0)
    budget: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2"):
            raise ValueError(f"threat.norm is {self.norm!r}; it may be linf or l2.")
        eps = parse_ratio(self.eps, "threat.eps")
        if eps < 0:
            raise ValueError(f"threat.eps is {self.eps}, and a budget cannot be negative.")
        if self.norm == "linf" and eps > 1:
            raise ValueError(
                f"threat.eps is {eps:g}, but images lie in [0, 1]: write {eps:g}/255 if grey levels are meant."
            )
        if not 0.0 <= self.bounds[0] < self.bounds[1] <= 1.0:
            raise ValueError(f"threat.bounds is {self.bounds}; it must be low and high with 0 <= low < high <= 1.")
        object.__setattr__(self, "budget", eps)

    def largest(self, image_shape: tuple[int, ...]) -> float:
        """The smallest budget that allows every image of ``image_shape`` (C, H, W) within the bounds."""
        width = self.bounds[1] - self.bounds[0]
        return width if self.norm == "linf" else width * math.sqrt(math.prod(image_shape))

    def scaled(self, factor: float, image_shape: tuple[int, ...]) -> "ThreatModel":
        """The same threat model with ``factor`` times the budget, at most `largest`."""
        return replace(self, eps=min(self.budget * factor, self.largest(image_shape)))

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Refuse an l2 budget larger than the distance of any two images of ``image_shape`` (C, H, W).

        Raises:
            ValueError: if it is.
        """
        largest = self.largest(image_shape)
        if self.norm == "l2" and self.budget > largest:
            raise ValueError(
                f"threat.eps is {self.eps}, but two images of shape {tuple(image_shape)} in [0, 1] are at most "
                f"{largest:.4g} apart in l2: write {self.eps}/255 if grey levels are meant."
            )

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """``x_adv`` projected onto the threat set of ``x``, (B, C, H, W) each; for l2 onto the ball, then the box."""
        delta = x_adv - x
        if self.norm == "linf":
            delta = delta.clamp(-self.budget, self.budget)
        else:
            norm = _norm(delta)
            scale = torch.where(norm > self.budget, _SHRINK * self.budget / norm.clamp_min(1e-12), 1.0)
            delta = delta * scale.to(delta.dtype)
        return (x + delta).clamp(*self.bounds)

    def ascent_direction(self, gradient: Tensor) -> Tensor:
        """The direction of steepest ascent with unit norm: the sign (linf) or the normalised gradient (l2).

        A gradient of zero gives a direction of zero in both norms.
        """
        if self.norm == "linf":
            return gradient.sign()
        return gradient / _norm(gradient).clamp_min(torch.finfo(gradient.dtype).tiny).to(gradient.dtype)

    def random_point(self, x: Tensor, noise: NoiseStream) -> Tensor:
        """A uniform sample from the ball around each ``x`` (B, C, H, W), clipped to the box."""
        if self.norm == "linf":
            delta = (2.0 * noise.uniform(x.shape[1:], dtype=x.dtype) - 1.0) * self.budget
        else:
            direction = noise.fork("direction").normal(x.shape[1:], dtype=x.dtype)
            # In float64: a float32 power differs in its last bits between places in a batch.
            radius = noise.fork("radius").uniform((1, 1, 1), dtype=torch.float64) ** (1.0 / x[0].numel())
            delta = direction * (radius * self.budget / _norm(direction)).to(x.dtype)
        return self.project(x + delta, x)

    def random_boundary_point(self, x: Tensor, noise: NoiseStream) -> Tensor:
        """``x`` moved by the whole budget in a random direction (a random sign of each pixel for linf)."""
        direction = noise.normal(x.shape[1:], dtype=x.dtype)
        return self.project(x + self.ascent_direction(direction) * self.budget, x)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """(B,) norm of the perturbation."""
        delta = (x_adv - x).flatten(1)
        return delta.abs().amax(1) if self.norm == "linf" else delta.double().norm(dim=1).to(delta.dtype)
