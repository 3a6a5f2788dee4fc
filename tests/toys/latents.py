"""CMAP, small: the image is explained by several latents of a one-step generator, found by gradient descent."""

from collections.abc import Collection
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lustral.diffusion import Context, Denoiser, from_diffusion, to_diffusion
from lustral.diffusion.inner import inner_gradient
from lustral.noise import NoiseStream
from lustral.purifiers import Purified, Purifier

_DECAY = (0.9, 0.99)
_SMALL = 1e-3  # under Adam's root, which has a derivative at 0 then


class LatentPurifier(Purifier):
    """``num_latents`` latents an image are optimised together by Adam, and each gives a view.

    The distance as published is L1, whose second derivative is 0: the exact gradient of the whole is blind and not
    offered. A `Variant` with ``distance: l2`` is differentiated through the unrolled optimisation.

    Args:
        generator: a denoiser, asked once at ``t``.
        num_latents: n, views of each image.
        num_steps: of the optimisation.
        lr: learning rate.
        t: the time at which the generator is asked, in steps out of 1000.
        distance: "l1" or "l2", between image and generated one, a pixel's mean.
    """

    holds = frozenset({"latents"})
    offers: ClassVar = {"latents": "(B, n, C, H, W) the latents found, without a graph"}

    def __init__(
        self,
        generator: Denoiser,
        num_latents: int = 3,
        num_steps: int = 4,
        lr: float = 0.1,
        t: float = 300.0,
        distance: Literal["l1", "l2"] = "l1",
    ) -> None:
        super().__init__()
        self.generator = generator.eval().requires_grad_(False)
        self.num_latents, self.num_steps, self.lr, self.t = num_latents, num_steps, lr, t
        self.distance: Literal["l1", "l2"] = distance
        if distance == "l1":
            self.gradient_modes = ("bpda", "detached")
            self.instead = (
                "Through the L1 optimisation it would be 0: attack with a surrogate Variant of changes {distance: l2}."
            )

    def prepare(self, x: Tensor, noise: NoiseStream) -> Context:
        """Where the optimisation starts."""
        shape = (self.num_latents, *x.shape[1:])
        return {"latents": noise.fork("latents").normal(shape, dtype=x.dtype)}

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        latents = context["latents"]
        batch, n = latents.shape[:2]
        flat = latents.flatten(0, 1)
        state = {
            "latent": flat,
            "mean": torch.zeros_like(flat),
            "square": torch.zeros_like(flat),
            "count": torch.zeros(len(flat), dtype=torch.int64, device=x.device),
        }
        image = to_diffusion(x).repeat_interleave(n, 0)
        state = self.unroll(
            lambda i, state, context: self.rows(self._descend, state, context), self.num_steps, state, {"image": image}
        )
        views = from_diffusion(self.rows(self._generated, state["latent"])).unflatten(0, (batch, n)).transpose(0, 1)
        trace = {"latents": state["latent"].detach().unflatten(0, (batch, n))} if "latents" in wants else {}
        return Purified(views, trace)

    def _generated(self, latent: Tensor) -> Tensor:
        return self.generator(latent, torch.tensor(self.t, dtype=torch.float64))

    def _descend(self, state: dict[str, Tensor], context: Context) -> dict[str, Tensor]:
        """One step of Adam on one latent a row."""

        def far(latent: Tensor) -> Tensor:
            difference = (self._generated(latent) - context["image"]).flatten(1)
            return (difference.abs() if self.distance == "l1" else difference.square()).mean(1)

        gradient, count = inner_gradient(far, state["latent"]), state["count"] + 1
        mean = _DECAY[0] * state["mean"] + (1 - _DECAY[0]) * gradient
        square = _DECAY[1] * state["square"] + (1 - _DECAY[1]) * gradient.square()
        first, second = ((1.0 - decay ** count.double()).to(gradient.dtype)[:, None, None, None] for decay in _DECAY)
        latent = state["latent"] - self.lr * (mean / first) / (square / second + _SMALL).sqrt()
        return {"latent": latent, "mean": mean, "square": square, "count": count}
