"""Heterogeneous noise, small: what the victim looks at is noised more than the rest of the image."""

from collections.abc import Collection
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lustral.diffusion import Context, Denoiser, Solver, from_diffusion, to_diffusion
from lustral.noise import NoiseStream
from lustral.purifiers import Purified, Purifier


class HeterogeneousNoise(Purifier):
    """A mask over pixels, 1 where the victim's feature map is strong, says which are noised to ``t_high`` and which to
    ``t_low``. The reverse process has two stages: down to ``t_low`` the weakly noised pixels are given back what the
    image says of them at every step, from there on all go together.

    Args:
        denoiser: the diffusion model, on a continuous schedule.
        solver: the reverse step.
        stage: name of the victim's feature map.
        t_low, t_high: noise levels in steps out of 1000.
        num_steps: reverse steps of each stage.
        sharpness: of a soft mask, sigmoid(sharpness * (strength / mean strength - 1)); None for a hard one, which is a
            constant to the exact gradient.
    """

    holds = frozenset({"mask"})
    offers: ClassVar = {"mask": "(B, 1, H, W) the share of the strong noise that each pixel got"}

    def __init__(
        self,
        denoiser: Denoiser,
        solver: Solver,
        stage: str,
        t_low: float = 60.0,
        t_high: float = 200.0,
        num_steps: tuple[int, int] = (2, 2),
        sharpness: float | None = 4.0,
    ) -> None:
        super().__init__()
        self.denoiser, self.solver = denoiser.eval().requires_grad_(False), solver
        self.stage, self.t_low, self.t_high, self.num_steps = stage, t_low, t_high, num_steps
        self.sharpness = sharpness
        self._first = torch.linspace(t_high, t_low, num_steps[0] + 1, dtype=torch.float64)
        self._second = denoiser.schedule.grid(t_low, num_steps[1])

    def bind(self, classifier: nn.Module) -> None:
        super().bind(classifier)
        known = getattr(classifier, "stage_names", ())
        if self.stage not in known:
            raise ValueError(f"{type(classifier).__name__} has no stage {self.stage!r}; it has {', '.join(known)}.")

    def prepare(self, x: Tensor, noise: NoiseStream) -> Context:
        return {"mask": self.rows(self._mask, x)}

    def _mask(self, x: Tensor) -> Tensor:
        features = self.victim.activations(x, [self.stage])[self.stage]
        strength = features.square().mean(1, keepdim=True)
        strength = F.interpolate(strength, x.shape[-2:], mode="bilinear", align_corners=False)
        relative = strength / strength.mean((2, 3), keepdim=True) - 1.0
        if self.sharpness is None:
            return (relative > 0).to(x.dtype)
        return torch.sigmoid(self.sharpness * relative)

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        followed = {"image": to_diffusion(x), "mask": context["mask"]}

        def first(i: int, state: Tensor, context: Context) -> Tensor:
            t, s = self._first[i], self._first[i + 1]
            return self.rows(self._masked, state, context, t, s, noise.at(round=0, step=i))

        def second(i: int, state: Tensor, context: Context) -> Tensor:
            t, s = self._second[i], self._second[i + 1]
            return self.rows(self._step, state, t, s, noise.at(round=1, step=i))

        start = self.rows(self._noised, followed["image"], self._first[0], noise)
        state = self.unroll(first, self.num_steps[0], start, followed)
        state = self.unroll(second, self.num_steps[1], self.rows(self._mixed, state, followed, self._first[-1], noise))
        trace = {"mask": context["mask"].detach()} if "mask" in wants else {}
        return Purified(from_diffusion(state)[None], trace)

    def _noised(self, image: Tensor, t: Tensor, noise: NoiseStream) -> Tensor:
        """Always with the very noise of the forward process, so that each pixel has one path."""
        return self.denoiser.schedule.perturb(
            image, t, noise.at(round=0, step=0).fork("forward").normal(image.shape[1:], dtype=image.dtype)
        )

    def _mixed(self, state: Tensor, context: Context, t: Tensor, noise: NoiseStream) -> Tensor:
        known = self._noised(context["image"], t, noise)
        return context["mask"] * state + (1.0 - context["mask"]) * known

    def _masked(self, state: Tensor, context: Context, t: Tensor, s: Tensor, noise: NoiseStream) -> Tensor:
        return self._step(self._mixed(state, context, t, noise), t, s, noise)

    def _step(self, x_t: Tensor, t: Tensor, s: Tensor, noise: NoiseStream) -> Tensor:
        drawn = noise.fork("reverse").normal(x_t.shape[1:], dtype=x_t.dtype)
        return self.solver.step(self.denoiser, x_t, t, s, drawn)
