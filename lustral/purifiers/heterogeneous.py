"""Heterogeneous noise: more of it where the classifier looks, and a reverse process of two stages.

Pei et al., "Divide and conquer: heterogeneous noise integration for diffusion-based adversarial purification", CVPR
2025; docs/heterogeneous.md.
"""

from collections.abc import Collection
from functools import partial
from typing import get_args

import torch
from torch import Tensor, nn

from lustral.diffusion import DDIM, Context, Denoiser, from_diffusion, to_diffusion
from lustral.diffusion.schedules import MAX_TIME
from lustral.noise import NoiseStream
from lustral.purifiers.base import Purified, Purifier
from lustral.purifiers.masks import Mask
from lustral.purifiers.resampling import (
    Compose,
    Hop,
    Resample,
    checked_reach,
    in_stage_one,
    noised_further,
    plan,
    two_stage_grid,
)
from lustral.purifiers.sizes import resized

_IMAGE = "image"
_FEWEST = 4
"""With one step of stage 1 the public code's mask has no effect at all, with two a part of it; four are taken to be
enough."""


class HeterogeneousNoise(Purifier):
    """Noises the inside of a mask to ``t_large`` and the outside to ``t_small``, and removes both in two stages.

    Everything starts at t_large. Stage 1 leads down to t_small: the inside is generated, and the outside is set to the
    noised input image at every step. (Equation 8 of the paper has the two exchanged; its text and its code have not.)
    Stage 2 is the ordinary reverse process of the whole image. Nothing is clamped.

    The mask is computed anew for every input. An attack may hold that of the clean image (``context: clean``), or see
    it relaxed (`AttentionMask`). The paper predicts from several runs, which is a verdict rule here.

    Args:
        denoiser: the diffusion model; the paper's and the code's are asked on the table of 1000 levels.
        mask: AttentionMask, or a control: RandomMask, InvertedMask, ConstantMask.
        t_large: t_l, the noise level inside the mask in noising steps out of 1000 (0.2 of the paper is 200).
        t_small: t_s, that outside, in 1..t_large. Stage 1 ends at the last time of the grid that is not below it. If
            the two are equal there is no stage 1, and the process is DiffPure's with the DDIM solver.
        num_steps: even reverse steps from t_large; or [steps of stage 1, steps of stage 2].
        compose: when the outside is set to the noised input: "after" each reverse step of stage 1 (the paper) or
            "before" it (the code). After the last one the outside has the noise of t_small, to which one_hop adds some
            that it removes again; before it, that of the step's larger time.
        resample: of each step of stage 1: "multi_step", "one_hop" (the paper) or "fused" (the code); see `plan` in
            `lustral.purifiers.resampling`.
        num_resamples: U, not negative; 0 does not resample. multi_step makes 1 + U network calls a step, one_hop 2, and
            fused 1, whatever U is.
        jump_length: the noising steps that each of the U rounds of one_hop and fused adds; theirs is 1. multi_step goes
            back a step of the grid instead.
        eta: of the DDIM steps, in [0, 1]: 0 adds no noise (the code), 1 is DDPM (the paper's algorithm 1).
        allow_inert: accept a grid with fewer than 4 steps in stage 1, on which the mask has little effect or none; for
            attacks on a cheaper or a uniform process.
        resize_to: resize images to this side in pixels, the denoiser's (256 for ImageNet images of 224), and back after
            purification; None keeps their size. The mask is made at the larger size, of the victim's own images.

    Raises:
        ValueError: if an option is out of its range, or stage 1 has fewer than 4 steps and ``allow_inert`` is False; in
            `bind`, if the mask cannot be made from the victim.
    """

    holds = frozenset({"mask"})

    def __init__(
        self,
        denoiser: Denoiser,
        mask: Mask,
        t_large: float = 200,
        t_small: float = 50,
        num_steps: int | tuple[int, int] = 20,
        compose: Compose = "after",
        resample: Resample = "one_hop",
        num_resamples: int = 10,
        jump_length: float = 1.0,
        eta: float = 0.0,
        allow_inert: bool = False,
        resize_to: None | int = None,
    ) -> None:
        super().__init__()
        for name, value, allowed in (("compose", compose, Compose), ("resample", resample, Resample)):
            if value not in get_args(allowed):
                raise ValueError(f"{name} is {value!r}; it may be {', '.join(get_args(allowed))}.")
        if not 1 <= t_small <= t_large <= MAX_TIME:
            raise ValueError(
                f"t_small = {t_small} and t_large = {t_large} count noising steps, and must lie in 1 <= t_small <= "
                f"t_large <= {MAX_TIME}."
            )
        if resize_to is not None and resize_to != denoiser.image_shape[-1]:
            raise ValueError(f"resize_to is {resize_to}, but the denoiser works at {denoiser.image_shape[-1]} pixels.")
        self.denoiser, self.mask = denoiser.eval().requires_grad_(False), mask
        self.t_large, self.t_small, self.compose, self.resample = t_large, t_small, compose, resample
        self.num_steps = num_steps if isinstance(num_steps, int) else (num_steps[0], num_steps[1])
        self.num_resamples, self.jump_length, self.eta = num_resamples, jump_length, eta
        self.allow_inert, self.resize_to = allow_inert, resize_to
        self.solver = DDIM(eta)
        self.grid = two_stage_grid(denoiser.schedule, float(t_large), float(t_small), self.num_steps)
        self._refuse_inert()
        reach = checked_reach(denoiser.schedule, t_large, resample, num_resamples, jump_length)
        self.hops = plan(self.grid, float(t_small), compose, resample, num_resamples, reach)
        looked = {"attention": "(B, 1, H, W) in [0, 1], what the mask is made from; differentiable, at one more call"}
        self.offers = {
            "mask": "(B, 1, H, W), 1 inside, at the purifier's size; differentiable if it is relaxed",
            "area": "(B,) the share of the pixels inside the mask; differentiable if it is relaxed",
            "noised": "the image with both noises (equation 5), in [0, 1], without a graph",
            "path": "(B, states, C, H, W) the image noised to t_l and what every network call makes of it, in [0, 1], "
            "without a graph; takes the reverse process a second time",
        } | (looked if mask.looks else {})

    def bind(self, classifier: nn.Module) -> None:
        super().bind(classifier)
        self.mask.check(classifier)

    def derived(self) -> dict[str, float]:
        """``sigma`` and ``sigma_small``, the standard deviations of the noise inside and outside of the mask, in
        diffusion space [-1, 1]; and ``network_calls`` of the diffusion model."""
        inside, outside = (float(self.denoiser.schedule.sigma(t)) for t in self._levels())
        return {
            "sigma": round(inside, 6),
            "sigma_small": round(outside, 6),
            "network_calls": float(len(self.hops)),
        }

    def prepare(self, x: Tensor, noise: NoiseStream) -> Context:
        """ "mask" (B, 1, H, W) in [0, 1] at the purifier's size."""
        return {"mask": self.rows(self._mask, x, noise)}

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        followed = {_IMAGE: to_diffusion(resized(x, self.resize_to)), "mask": context["mask"]}

        def step(i: int, state: Tensor, context: Context) -> Tensor:
            hop = self.hops[i]
            return self.rows(partial(self._hop, hop), state, context, noise.at(round=hop.round, step=hop.step))

        start = self.rows(partial(self._noised, self.grid[0]), followed[_IMAGE], noise)
        found = self.unroll(step, len(self.hops), start, followed)
        trace = {name: self._traced(name, x, followed, noise) for name in wants if name != "path"}
        if "path" in wants:
            with torch.no_grad():
                states = [start.detach()]
                for i in range(len(self.hops)):
                    states.append(step(i, states[-1], followed))
            trace["path"] = torch.stack([resized(from_diffusion(each), x.shape[-1]) for each in states], 1)
        return Purified(resized(from_diffusion(found), x.shape[-1])[None], trace)

    def _hop(self, hop: Hop, x: Tensor, context: Context, noise: NoiseStream) -> Tensor:
        def drawn(name: str) -> Tensor:
            return noise.fork(name).normal(x.shape[1:], dtype=x.dtype)

        def composed(x: Tensor, t: Tensor) -> Tensor:
            known = self.denoiser.schedule.perturb(context[_IMAGE], t, drawn("known"))
            return _composed(context["mask"], x, known)

        if hop.composed == "start":
            x = composed(x, hop.start)
        if hop.via > hop.start:
            x = noised_further(self.denoiser.schedule, x, hop.start, hop.via, drawn("resample"))
        if hop.composed == "via":
            x = composed(x, hop.via)
        x = self.solver.step(
            self.denoiser, x, hop.via, hop.end, drawn("reverse") if self.solver.random else torch.zeros_like(x)
        )
        return composed(x, hop.end) if hop.composed == "end" else x

    def _mask(self, x: Tensor, noise: NoiseStream) -> Tensor:
        return self.mask(x, self._size(x), self._activations, noise)

    def _attention(self, x: Tensor) -> Tensor:
        return self.mask.attention(x, self._size(x), self._activations)

    def _activations(self, x: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        return self.victim.activations(x, names)

    def _size(self, x: Tensor) -> tuple[int, int]:
        return (x.shape[-2], x.shape[-1]) if self.resize_to is None else (self.resize_to, self.resize_to)

    def _noised(self, t: Tensor, image: Tensor, noise: NoiseStream) -> Tensor:
        z = noise.fork("forward").normal(image.shape[1:], round=0, dtype=image.dtype)
        return self.denoiser.schedule.perturb(image, t, z)

    def _levels(self) -> tuple[Tensor, Tensor]:
        """t_l and t_s, as far as the grid has them."""
        return self.grid[0], self.grid[in_stage_one(self.grid, float(self.t_small))]

    def _traced(self, name: str, x: Tensor, followed: Context, noise: NoiseStream) -> Tensor:
        mask = followed["mask"]
        if name == "mask":
            return mask
        if name == "area":
            return mask.double().flatten(1).mean(1)
        if name == "attention":
            return self.rows(self._attention, x)
        inside, outside = (self._noised(t, followed[_IMAGE].detach(), noise) for t in self._levels())
        return resized(from_diffusion(_composed(mask.detach(), inside, outside)), x.shape[-1])

    def _refuse_inert(self) -> None:
        steps = in_stage_one(self.grid, float(self.t_small))
        if steps < _FEWEST and not self.allow_inert:
            raise ValueError(
                f"Only {steps} of the reverse steps end at t_small = {self.t_small} or above, and with fewer than "
                f"{_FEWEST} the mask has little effect or none: raise num_steps, or set allow_inert to true for an "
                "attack on this cheaper process."
            )


def _composed(mask: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    return mask * inside + (1.0 - mask) * outside
