"""CMAP: the image is restored from latents of a one-step generator, found by gradient descent. docs/cmap.md.

"Adversarial purification by consistency-aware latent space optimization on data manifolds" (Zhang et al., arXiv
2412.08394).
"""

import math
from collections.abc import Collection, Sequence
from functools import partial
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from lustral.diffusion import Context
from lustral.diffusion.generator import Generator
from lustral.diffusion.inner import inner_gradient
from lustral.noise import NoiseStream
from lustral.purifiers.base import Purified, Purifier
from lustral.purifiers.implicit import through_minimiser
from lustral.purifiers.latent_constraints import LatentConstraint, LatentMoments
from lustral.purifiers.latent_steps import Optimiser, adam, normalised
from lustral.purifiers.similarity import ssim_map
from lustral.rows import selected

Start = Literal["noise", "inversion"]
Derivative = Literal["unrolled", "implicit"]

CURVES = ("l1", "ssim", "constraint", "latent_mean", "latent_std")


class CMAP(Purifier):
    """``num_latents`` latents of each image are optimised together; each of the images they give is a view, and
    ``merge: vote`` of the defence counts the labels of the views.

    The loss of an image x (equations 9 to 12, with the sums and the units of the public code) is

        scale * (sum_k |G(z_k) - x|_1 - ssim_weight * sum_k SSIM(G(z_k), x) + latent_weight * constraint(z_1 ... z_n)),

    the L1 distance in units of diffusion space ([-1, 1]), and the SSIM summed over channels and pixels. Nothing couples
    two images: sums, not means, and elementwise steps.

    The published method has no useful exact gradient: the mixed second derivative of the L1 distance is zero almost
    everywhere, and Adam's first steps are signs. It is refused; attacks differentiate a `Variant`, with ``smoothing``
    above 0, and usually with few steps of ``optimiser: gradient`` from latents that are carried from one step of the
    attack to the next (``carry: [latents]``).

    What is not published, and changes the defence: ``start: inversion``, ``stop_tolerance``, fewer latents or steps,
    another constraint, ``optimiser: gradient`` and ``smoothing``.

    Args:
        generator: from latents to images.
        num_latents: n, latents of each image: 10 on CIFAR-10, 5 on ImageNet-100.
        num_steps: steps of the optimisation: 200 on CIFAR-10, 300 on ImageNet-100.
        lr: learning rate of Adam, in units of the latents.
        ssim_weight: lambda, the factor of the SSIM term: 2 on CIFAR-10, 0.5 on ImageNet-100. The term is a sum over
            pixels, as is the L1 term, so it may be kept at another resolution.
        latent_weight: beta, the factor of the latent constraint; 0 switches it off. 5e-4 on CIFAR-10, 2e-4 on
            ImageNet-100, at sigma_max 80: multiply by (80 / sigma_max)^2, and lr by sigma_max / 80, for another one.
        constraint: of the latents; LatentMoments (the paper's) if none is named.
        scale: factor of the whole loss, nearly without effect under Adam: 1 on CIFAR-10, 0.005 on ImageNet-100.
        betas: Adam's.
        start: "noise", independent of the image, as published; or "inversion", the image noised to the generator's
            highest level, which takes fewer steps.
        stop_tolerance: an image's latents rest once its loss, by pixel and latent, has fallen by less than this over
            ``stop_window`` steps; None optimises all images for all steps, as published.
        stop_window: steps between two looks at the loss.
        optimiser: "adam", as published; or "gradient", steps of length ``lr`` against the gradient, without memory.
        smoothing: delta of the smooth distance sqrt(r^2 + delta^2) in place of |r|, in units of diffusion space; Adam's
            epsilon is then inside its root. 0 is the published loss.
        derivative: how the exact gradient is taken: "unrolled", through all steps; or "implicit", as if the latents
            were a minimum (see `through_minimiser`), whatever the number of steps.
        solver_steps: steps of conjugate gradients of the implicit derivative.
        damping: of the implicit derivative.

    Raises:
        ValueError: if an argument is out of its range, or n is too small for the constraint.
    """

    holds = frozenset({"latents"})
    offers: ClassVar = {
        "latents": "(B, n, ...) the latents found, without a graph",
        "l1": "(B, num_steps) L1 distance summed over views and pixels, in [-1, 1] units, before each step",
        "ssim": "(B, num_steps) structural similarity summed over views and pixels, before each step",
        "constraint": "(B, num_steps) the latent constraint before each step, without its factor",
        "latent_mean": "(B, num_steps) mean of all elements of the latents before each step",
        "latent_std": "(B, num_steps) standard deviation of all elements of the latents before each step",
    }

    def __init__(
        self,
        generator: Generator,
        num_latents: int = 10,
        num_steps: int = 200,
        lr: float = 2.0,
        ssim_weight: float = 2.0,
        latent_weight: float = 5e-4,
        constraint: None | LatentConstraint = None,
        scale: float = 1.0,
        betas: Sequence[float] = (0.9, 0.99),
        start: Start = "noise",
        stop_tolerance: None | float = None,
        stop_window: int = 10,
        optimiser: Optimiser = "adam",
        smoothing: float = 0.0,
        derivative: Derivative = "unrolled",
        solver_steps: int = 10,
        damping: float = 0.1,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("start", start, get_args(Start)),
            ("optimiser", optimiser, get_args(Optimiser)),
            ("derivative", derivative, get_args(Derivative)),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; it may be {', '.join(known)}.")
        for name, value in (
            *(("num_latents", num_latents), ("num_steps", num_steps)),
            *(("stop_window", stop_window), ("solver_steps", solver_steps)),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        if stop_tolerance is not None and math.isnan(stop_tolerance):
            raise ValueError("stop_tolerance is nan; it is a loss by pixel and latent, or None to take all steps.")
        if stop_tolerance is not None and stop_window < 2:
            raise ValueError(f"stop_window is {stop_window}; with a stop_tolerance it must be at least 2.")
        positive = 0 < lr < math.inf and 0 < scale < math.inf
        if not positive or len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"lr = {lr} and scale = {scale} must be positive, and betas = {betas} two from [0, 1).")
        if not all(0 <= value < math.inf for value in (ssim_weight, latent_weight, smoothing, damping)):
            raise ValueError(
                f"ssim_weight = {ssim_weight}, latent_weight = {latent_weight}, smoothing = {smoothing} and damping = "
                f"{damping} cannot be negative or infinite."
            )
        self.generator = generator.eval().requires_grad_(False)
        self.num_latents, self.num_steps, self.lr = num_latents, num_steps, lr
        self.ssim_weight, self.latent_weight, self.scale = ssim_weight, latent_weight, scale
        self.constraint, self.betas = constraint or LatentMoments(), (float(betas[0]), float(betas[1]))
        if latent_weight and num_latents < self.constraint.fewest:
            raise ValueError(
                f"num_latents is {num_latents}, but {type(self.constraint).__name__} compares at least "
                f"{self.constraint.fewest} latents of an image: raise it, or switch the term off (latent_weight: 0)."
            )
        self.start: Start = start
        self.stop_tolerance, self.stop_window = stop_tolerance, stop_window
        self.ragged = stop_tolerance is not None
        self.optimiser: Optimiser = optimiser
        self.derivative: Derivative = derivative
        self.smoothing, self.solver_steps, self.damping = smoothing, solver_steps, damping
        if not smoothing:
            self.gradient_modes = ("bpda", "detached")
            self.instead = (
                "Through the L1 distance it would see the SSIM alone: attack with gradient bpda, or with a surrogate "
                "Variant of changes {smoothing: 0.1, optimiser: gradient, num_steps: 5} and carry [latents], or "
                "{smoothing: 0.1, derivative: implicit}."
            )

    def derived(self) -> dict[str, float]:
        """``sigma_max``, the standard deviation of the latents; and ``network_calls``, the forward passes of an image
        (all but ``num_latents`` of them are followed by a backward pass)."""
        calls = float(self.num_latents * (self.num_steps + 1))
        return {"sigma_max": round(self.generator.latent_std, 6), "network_calls": calls}

    def prepare(self, x: Tensor, noise: NoiseStream) -> Context:
        """ "latents" (B, n, ...), where the optimisation starts; each has a key of its own."""
        stream, shape = noise.fork("latents"), torch.Size(self.generator.latent_shape)
        drawn = [stream.normal(shape, round=k, dtype=x.dtype) for k in range(self.num_latents)]
        if self.start == "inversion":
            return {"latents": torch.stack([self.generator.inverted(x, one) for one in drawn], 1)}
        return {"latents": self.generator.latent_std * torch.stack(drawn, 1)}

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        implicit = self.derivative == "implicit" and torch.is_grad_enabled() and x.requires_grad
        with torch.set_grad_enabled(torch.is_grad_enabled() and not implicit):
            state = self._optimised(x.detach() if implicit else x, context["latents"], bool({*CURVES} & {*wants}))
        latents = state["latents"]
        trace = {"latents": latents.detach()} if "latents" in wants else {}
        for number, name in enumerate(CURVES):
            if name in wants:
                trace[name] = state["curves"][..., number].detach()
        if implicit:
            latents = through_minimiser(latents, x, self._products, self.solver_steps, self.damping)
        views = self.rows(self.generator, latents.flatten(0, 1)).unflatten(0, latents.shape[:2])
        return Purified(views.transpose(0, 1), trace)

    def distances(self, images: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) each: the L1 distance of ``images`` and ``x`` (B, C, H, W) in [0, 1], in units of diffusion space, and
        their structural similarity, both summed over pixels."""
        apart = 2.0 * (images - x)
        apart = (apart.square() + self.smoothing**2).sqrt() if self.smoothing else apart.abs()
        return apart.flatten(1).sum(1), ssim_map(images, x).flatten(1).sum(1)

    def constrained(self, latents: Tensor) -> Tensor:
        """(B,) the constraint of ``latents`` (B, n, ...), without its factor; 0 where it is switched off."""
        if not self.latent_weight:
            return latents.new_zeros(len(latents))
        return self.constraint(latents, self.generator.latent_std)

    def moved(
        self, latents: Tensor, gradient: Tensor, memory: dict[str, Tensor], number: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The latents (B, n, ...) after step ``number`` (from 0) along ``gradient``, and the optimiser's memory."""
        if self.optimiser == "gradient":
            return normalised(latents, gradient, self.lr), memory
        return adam(latents, gradient, memory, number, self.lr, self.betas, bool(self.smoothing))

    def remembering(self, latents: Tensor) -> dict[str, Tensor]:
        """The optimiser's memory before the first step."""
        if self.optimiser == "gradient":
            return {}
        return {"mean": torch.zeros_like(latents), "square": torch.zeros_like(latents)}

    def _optimised(self, x: Tensor, latents: Tensor, curves: bool) -> dict[str, Tensor]:
        state = {"latents": latents, **self.remembering(latents)}
        if curves or self.stop_tolerance is not None:
            state["curves"] = latents.new_zeros(len(latents), self.num_steps, len(CURVES))
        if self.stop_tolerance is None:
            return self.unroll(self._step, self.num_steps, state, {"image": x})
        return self._stopped(x, state, self.stop_tolerance)

    def _stopped(self, x: Tensor, state: dict[str, Tensor], tolerance: float) -> dict[str, Tensor]:
        """Windows of steps of the images whose loss still falls; the others' latents stay as they are."""
        active = torch.arange(len(x), device=x.device)
        known = torch.zeros_like(active)  # the number of the last step whose losses an image has
        for first in range(0, self.num_steps, self.stop_window):
            count = min(self.stop_window, self.num_steps - first)
            own, image = selected((state, x), active)
            own = self.unroll(partial(self._from, first), count, own, {"image": image})
            state = {name: values.index_copy(0, active, own[name]) for name, values in state.items()}
            known[active] = first + count - 1
            begun, ended = (self._loss(own["curves"][:, at]) for at in (first, first + count - 1))
            active = active[begun - ended >= tolerance * own["latents"][0].numel()]  # looks at the device once a window
            if not len(active):
                break
        at = torch.arange(self.num_steps, device=x.device).expand(len(x), -1).minimum(known[:, None])
        curves = state["curves"].gather(1, at[..., None].expand(-1, -1, len(CURVES)))
        return {**state, "curves": curves}

    def _loss(self, terms: Tensor) -> Tensor:
        """(B,) the loss, without its scale, from a column of the curves (B, 5)."""
        l1, ssim, constraint = terms.detach().unbind(1)[:3]
        return l1 - self.ssim_weight * ssim + self.latent_weight * constraint

    def _from(self, first: int, i: int, state: dict[str, Tensor], context: Context) -> dict[str, Tensor]:
        return self._step(first + i, state, context)

    def _step(self, number: int, state: dict[str, Tensor], context: Context) -> dict[str, Tensor]:
        return self.rows(partial(self._descend, number), state, context)

    def _descend(self, number: int, state: dict[str, Tensor], context: Context) -> dict[str, Tensor]:
        """One step of all latents of some images: the network sees R latents a call, whose graph is freed at once."""
        latents = state["latents"]
        gradient, terms = self._gradient(latents, context["image"])
        moved, memory = self.moved(latents, gradient, {k: v for k, v in state.items() if k in _MEMORY}, number)
        after = {"latents": moved, **memory}
        if "curves" in state:
            column = torch.tensor([number], device=latents.device)
            after["curves"] = state["curves"].index_copy(1, column, terms[:, None])
        return after

    def _gradient(self, latents: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of the loss at ``latents`` (B, n, ...), and (B, 5) what the curves tell of them."""
        count = latents.shape[1]
        given = (latents.flatten(0, 1), image.repeat_interleave(count, 0))
        pull, l1, ssim = self.rows(self._pull, *given)
        gradient, constraint = pull.unflatten(0, (-1, count)), latents.new_zeros(len(latents))
        if self.latent_weight:
            seen: list[Tensor] = []

            def weighed(z: Tensor) -> Tensor:
                seen.append(self.constrained(z))
                return self.scale * self.latent_weight * seen[0]

            gradient = gradient + inner_gradient(weighed, latents)
            constraint = seen[0].detach()
        flat = latents.detach().flatten(1)
        sums = [part.unflatten(0, (-1, count)).sum(1) for part in (l1, ssim)]
        return gradient, torch.stack((*sums, constraint, flat.mean(1), flat.std(1, correction=0)), 1)

    def _pull(self, latent: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row by row: the gradient of the distances of one latent's image, and both of them."""
        seen: list[Tensor] = []

        def apart(z: Tensor) -> Tensor:
            seen.extend(self.distances(self.generator(z), image))
            return self.scale * (seen[0] - self.ssim_weight * seen[1])

        return inner_gradient(apart, latent), seen[0].detach(), seen[1].detach()

    def _products(self, latents: Tensor, x: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        return self.rows(self._second, latents, x, vector)

    def _second(self, latents: Tensor, x: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Second derivatives of the loss, by latents and by latents and image, times ``vector`` (B, n, ...)."""
        with torch.enable_grad():
            z, image = latents.detach().requires_grad_(), x.detach().requires_grad_()
            gradient, _ = self._gradient(z, image)
            by_latents, by_image = torch.autograd.grad((gradient * vector).sum(), (z, image))
        return by_latents, by_image


_MEMORY = ("mean", "square")
