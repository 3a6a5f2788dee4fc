"""The seam of every purification method: the base class verifies, the method computes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from lustral.diffusion.trajectory import Step, unroll
from lustral.noise import NoiseStream
from lustral.purifiers.pieces import Pieces

GradientMode = Literal["exact", "bpda", "detached", "frozen", "straight_through", "smooth"]
"""exact: of the whole unrolled trajectory; bpda: the purifier's Jacobian replaced by the identity (Athalye et al.
2018); detached: none. The others are ways of looking at what an image decides for itself (see `SSNI`)."""

Context = dict[str, Tensor]
"""What an image alone decides (a level, a mask, a reference): tensors with one row an image."""


@dataclass(frozen=True)
class Purified:
    """What a purifier returns.

    Attributes:
        images: (V, B, C, H, W), V views of each image that are merged by the defence; V is 1 for most methods.
        trace: what happened on the way, tensors with one row an image ("noised": the image at t*, ...).
    """

    images: Tensor
    trace: dict[str, Tensor] = field(default_factory=dict)


class Purifier(nn.Module, ABC):
    """Maps attacked images to purified ones. Subclasses give `run`, and `prepare` where an image decides something.

    Attributes:
        random: whether two calls with other noise give other images.
        gradient_modes: the modes this method can answer honestly.
        ragged: whether rows differ in how many network calls they need. It is then worth handing over many more rows
            than one network call takes.
        pieces: how many rows a network call has; set by whoever runs the evaluation.
        graph_budget: bytes that kept graphs of an unrolled trajectory may take (see `unroll`); never changes a
            result. Set by whoever runs the evaluation.
    """

    random: bool = True
    gradient_modes: tuple[GradientMode, ...] = ("exact", "bpda", "detached")
    ragged: bool = False
    graph_budget: float = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.pieces = Pieces()

    def bind(self, classifier: nn.Module) -> None:
        """Show the victim to methods that look at it (masks, guidance). Called once, before any image."""

    def derived(self) -> dict[str, float]:
        """Quantities that follow from the arguments and that a reader wants to see on the card (a sigma)."""
        return {}

    def prepare(
        self, x: Tensor, noise: NoiseStream, gradient: GradientMode = "exact", anchor: Tensor | None = None
    ) -> Context:
        """What ``x`` (B, C, H, W) alone decides, row by row; differentiable where ``gradient`` says so.

        ``anchor`` is the clean image under attack, which some gradient modes look at."""
        return {}

    @abstractmethod
    def run(self, x: Tensor, context: Context, noise: NoiseStream) -> Purified:
        """Purify ``x``, (B, C, H, W) in [0, 1], with every random draw taken from ``noise`` (B rows)."""

    def forward(
        self, x: Tensor, noise: NoiseStream, gradient: GradientMode = "exact", anchor: Tensor | None = None
    ) -> Purified:
        """Purify, with the chosen gradient. Final: subclasses give `run`."""
        if gradient not in self.gradient_modes:
            raise ValueError(
                f"{type(self).__name__} has no {gradient!r} gradient; it offers {', '.join(self.gradient_modes)}."
            )
        if x.ndim != 4 or len(noise) != len(x):
            raise ValueError(
                f"A purifier takes images (B, C, H, W) and a noise stream of B rows, not {tuple(x.shape)} and "
                f"{len(noise)} rows."
            )
        if gradient not in ("bpda", "detached"):
            purified = self._checked(self.run(x, self.prepare(x, noise, gradient, anchor), noise), x)
        else:
            constant = x.detach()  # a view of x would carry its gradient out of no_grad
            with torch.no_grad():
                purified = self._checked(self.run(constant, self.prepare(constant, noise), noise), x)
            if gradient == "bpda":
                purified = Purified(_straight_through(x, purified.images), purified.trace)
        return purified

    def _checked(self, purified: Purified, x: Tensor) -> Purified:
        """What `run` returned, if it is what it should be."""
        found = getattr(purified, "images", None)
        if not isinstance(purified, Purified) or not isinstance(found, Tensor):
            raise ValueError(f"{type(self).__name__}.run returned {_kind(purified)}; it must return Purified(images).")
        if found.ndim != x.ndim + 1 or found.shape[1:] != x.shape or not len(found) or found.dtype != x.dtype:
            raise ValueError(
                f"{type(self).__name__}.run made images of shape {tuple(found.shape)} and type {found.dtype} from "
                f"{tuple(x.shape)} and {x.dtype}; they must be (V, *x.shape), V views of each, and of the same type."
            )
        return purified

    def unroll(self, step: Step, num_steps: int, x: Tensor, inputs: Sequence[Tensor] = ()) -> Tensor:
        """`lustral.diffusion.unroll` within this purifier's graph budget."""
        return unroll(step, num_steps, x, inputs, self.graph_budget)


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, images: Tensor) -> Tensor:  # type: ignore[override]
        return images.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient.sum(0), None


def _straight_through(x: Tensor, images: Tensor) -> Tensor:
    """``images`` (V, B, ...) with the identity of ``x`` as their Jacobian, bit for bit (no x + (y - x) rounding)."""
    return _StraightThrough.apply(x, images)  # type: ignore[return-value]
