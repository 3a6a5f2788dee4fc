"""The seam of every purification method: the base class verifies, the method computes."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lustral.diffusion.trajectory import Context, State, Step, unroll
from lustral.noise import NoiseStream
from lustral.rows import Runtime

GradientMode = Literal["exact", "bpda", "detached"]
"""exact: the derivative of what is computed; bpda: the purifier's Jacobian replaced by the identity (Athalye et al.
2018); detached: none. Every other way of looking is another purifier (see `Variant`), or a context that the attack
hands over."""


@dataclass(frozen=True)
class Purified:
    """What a purifier returns.

    Attributes:
        images: (V, B, C, H, W), V views of each image that are merged by the defence; V is 1 for most methods.
        trace: the wanted entries of what happened on the way, tensors with one row an image.
    """

    images: Tensor
    trace: dict[str, Tensor] = field(default_factory=dict)


class Purifier(nn.Module, ABC):
    """Maps attacked images to purified ones. Subclasses give `run`, and `prepare` where an image decides something.

    Attributes:
        random: whether two calls with other noise give other images.
        gradient_modes: the modes this method can answer honestly. (Judging takes no gradient, and needs none.)
        instead: a sentence for whoever asks for another mode: what to differentiate (a `Variant`, by its changes).
        ragged: whether rows differ in how many network calls they need. It is then worth handing over many more rows
            than one network call takes.
        group_size: m, how many images are purified together; 1 if an image's answer is its own. Rows come in contiguous
            blocks of m, whole ones only, and nothing outside a block may change what comes of it.
        holds: the entries of the context, all that `prepare` gives, if an attack may hand them over.
        offers: what may be wanted of the trace, with a sentence each.
        runtime: how networks are called, shared by all parts of a run; whoever runs it sets it.
    """

    random: bool = True
    gradient_modes: tuple[GradientMode, ...] = get_args(GradientMode)
    instead: str = ""
    ragged: bool = False
    group_size: int = 1
    holds: frozenset[str] = frozenset()
    offers: Mapping[str, str] = {}
    _victim: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self._runtime = Runtime()
        object.__setattr__(self, "_victim", None)

    @property
    def runtime(self) -> Runtime:
        return self._runtime

    @runtime.setter
    def runtime(self, runtime: Runtime) -> None:
        for part in self.modules():
            if isinstance(part, Purifier):
                part._runtime = runtime

    @property
    def victim(self) -> Any:
        """The classifier that the method was shown by `bind`; no part of its state or its description.

        Raises:
            ValueError: if it was shown none.
        """
        if self._victim is None:
            raise ValueError(
                f"{type(self).__name__} looks at the classifier that it defends, and was shown none: put it into a "
                "Defence, or bind one."
            )
        return self._victim

    def bind(self, classifier: nn.Module) -> None:
        """Show the victim to methods that look at it (masks, guidance), and to every purifier inside this one. Called
        before any image. A method that asks something of the victim (a stage's name) extends it, and refuses here."""
        object.__setattr__(self, "_victim", classifier)  # nn.Module would make it a part
        for inner in _outermost(self):
            inner.bind(classifier)

    def derived(self) -> dict[str, float]:
        """Quantities that follow from the arguments and that a reader wants to see on the card (a sigma)."""
        return {}

    def prepare(self, x: Tensor, noise: NoiseStream) -> Context:
        """What ``x`` (B, C, H, W) decides before it is purified and an attack may hold: the entries of `holds`, row by
        row, differentiable in ``x``. What always follows the image does not belong here."""
        return {}

    @abstractmethod
    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        """Purify ``x``, (B, C, H, W) in [0, 1], with every random draw taken from ``noise`` (B rows); the trace has
        what ``wants`` names, each of it offered."""

    def forward(
        self,
        x: Tensor,
        noise: NoiseStream,
        gradient: GradientMode = "exact",
        context: Context | None = None,
        wants: Collection[str] = frozenset(),
    ) -> Purified:
        """Purify. Final: subclasses give `run`.

        Args:
            x: (B, C, H, W) in [0, 1].
            noise: B rows.
            gradient: how the result is differentiated.
            context: entries of `holds` that are handed over, instead of what ``x`` decides.
            wants: entries of the trace.

        Raises:
            ValueError: if a mode, an entry or a shape is not what this method knows.
        """
        # Whoever takes no gradient is refused none: the default is "exact", and verdicts ask for nothing else.
        taken = gradient if gradient != "exact" or torch.is_grad_enabled() else None
        self.check(taken, context or (), wants)
        if x.ndim != 4 or len(noise) != len(x):
            raise ValueError(
                f"A purifier takes images (B, C, H, W) and a noise stream of B rows, not {tuple(x.shape)} and "
                f"{len(noise)} rows."
            )
        if wrong := _without_rows(context or {}, len(x)):
            raise ValueError(
                f"The {', '.join(wrong)} handed to {type(self).__name__} must have a row for each of {len(x)} images."
            )
        if len(x) % self.group_size:
            raise ValueError(
                f"{type(self).__name__} purifies groups of {self.group_size} images together, and {len(x)} are no "
                f"whole number of groups: hand over a multiple of {self.group_size}."
            )
        if gradient == "exact":
            return self._checked(self.run(x, self.complete(x, noise, dict(context or {})), noise, wants), x, wants)
        constant = x.detach()  # a view of x would carry its gradient out of no_grad
        with torch.no_grad():
            found = self.run(constant, self.complete(constant, noise, dict(context or {})), noise, wants)
        purified = self._checked(found, x, wants)
        if gradient == "bpda":
            purified = Purified(_straight_through(x, purified.images), purified.trace)
        return purified

    def check(self, gradient: str | None = None, held: Collection[str] = (), wants: Collection[str] = ()) -> None:
        """Refuse a gradient mode (None: no gradient is taken), held entries of the context or wanted ones of the trace
        that this method lacks.

        Raises:
            ValueError: naming what there is.
        """
        name = type(self).__name__
        if gradient is not None and gradient not in self.gradient_modes:
            offered = f"{name} has no {gradient!r} gradient; it offers {', '.join(self.gradient_modes)}."
            raise ValueError(f"{offered} {self.instead}".rstrip())
        if unknown := sorted(set(held) - self.holds):
            raise ValueError(
                f"{name} has no {', '.join(unknown)} that an attack could hand over; it holds "
                f"{', '.join(sorted(self.holds)) or 'nothing'}."
            )
        if unknown := sorted(set(wants) - set(self.offers)):
            offered = "; ".join(f"{key} ({sentence})" for key, sentence in self.offers.items())
            raise ValueError(f"The trace of {name} has no {', '.join(unknown)}; it offers {offered or 'nothing'}.")

    def prepared(self, x: Tensor, noise: NoiseStream) -> Context:
        """What `prepare` gives, if it is tensors by name. Final."""
        found = self.prepare(x, noise)
        if not isinstance(found, Mapping):
            raise ValueError(f"{type(self).__name__}.prepare returned {_kind(found)}; it must return tensors by name.")
        return dict(found)

    def complete(self, x: Tensor, noise: NoiseStream, given: Context) -> Context:
        """What `run` is told: what is handed over, and what ``x`` decides for the rest. A method made of others hands
        ``given`` on, for each of them completes its own from the image that reaches it."""
        if self.holds and self.holds <= given.keys():
            return given
        context = {**self.prepared(x, noise), **given}
        if context.keys() != self.holds:
            raise ValueError(
                f"{type(self).__name__}.prepare gives {sorted(context)}, but the class holds {sorted(self.holds)}: it "
                "must give exactly those."
            )
        if wrong := _without_rows(context, len(x)):
            raise ValueError(
                f"{type(self).__name__}.prepare gave no tensor of a row for each of {len(x)} images for "
                f"{', '.join(wrong)}."
            )
        return context

    def _checked(self, purified: Purified, x: Tensor, wants: Collection[str]) -> Purified:
        """What `run` returned, if it is what it should be."""
        found = getattr(purified, "images", None)
        if not isinstance(purified, Purified) or not isinstance(found, Tensor):
            raise ValueError(f"{type(self).__name__}.run returned {_kind(purified)}; it must return Purified(images).")
        if found.ndim != x.ndim + 1 or found.shape[1:] != x.shape or not len(found) or found.dtype != x.dtype:
            raise ValueError(
                f"{type(self).__name__}.run made images of shape {tuple(found.shape)} and type {found.dtype} from "
                f"{tuple(x.shape)} and {x.dtype}; they must be (V, *x.shape), V views of each, and of the same type."
            )
        wrong = [name for name in wants if name not in purified.trace or len(purified.trace[name]) != len(x)]
        if wrong:
            raise ValueError(
                f"{type(self).__name__}.run was asked for {', '.join(wrong)} and gave no tensor of a row for each of "
                f"{len(x)} images: put it into the trace, since it is offered."
            )
        return purified

    def rows(self, function: Any, *given: Any) -> Any:
        """``function(*given)`` in calls of R rows each (see `lustral.rows.Runtime.call`)."""
        return self._runtime.call(function, *given)

    def unroll(self, step: Step[State], num_steps: int, state: State, context: Context | None = None) -> State:
        """`lustral.diffusion.unroll` within the run's graph budget."""
        return unroll(step, num_steps, state, context, self._runtime.graph_budget)


def _outermost(module: nn.Module) -> Iterator[Purifier]:
    """The purifiers inside ``module``, those inside them left out."""
    for part in module.children():
        if isinstance(part, Purifier):
            yield part
        else:
            yield from _outermost(part)


def _without_rows(context: Mapping[str, Tensor], rows: int) -> list[str]:
    """The names of those entries that are no tensors of so many rows."""
    return sorted(name for name, v in context.items() if not isinstance(v, Tensor) or not v.ndim or len(v) != rows)


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
