"""The base class of every purification method: it verifies arguments and results, the subclass computes."""

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
"""How a purifier is differentiated. exact: the derivative of what is computed; bpda: its Jacobian is replaced by the
identity (Athalye et al. 2018); detached: no gradient. Every other approximation is another purifier (a surrogate, see
`Variant`), or a context that the attack hands over."""


@dataclass(frozen=True)
class Purified:
    """The result of a purifier.

    Attributes:
        images: (V, B, C, H, W), V views of each image that are merged by the defence; V is 1 for most methods.
        trace: the wanted entries of the trace (intermediate results), tensors with one row per image.
    """

    images: Tensor
    trace: dict[str, Tensor] = field(default_factory=dict)


class Purifier(nn.Module, ABC):
    """Maps attacked images to purified ones. Subclasses implement `run`, and `prepare` if they have a context.

    Attributes:
        random: whether the purified images depend on the noise.
        gradient_modes: the gradient modes that this method supports. (None is needed where no gradient is taken.)
        instead: a sentence for the error on an unsupported mode: which surrogate to differentiate (a `Variant`'s
            changes).
        ragged: whether rows may need different numbers of network calls. It then pays to pass in many more rows at a
            time than one network call takes.
        group_size: m, the number of images that are purified together; 1 if each image is purified by itself. Rows come
            in contiguous blocks of m, whole groups only, and nothing outside a block may change its result.
        holds: the names of the context entries, exactly those that `prepare` returns; an attack may hand them over.
        offers: the names of the trace entries that may be wanted, with a sentence on each.
        runtime: how networks are called, shared by all parts of a run; set by the engine.
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
        """The classifier set by `bind`; it is no part of the purifier's state or description.

        Raises:
            ValueError: if none was bound.
        """
        if self._victim is None:
            raise ValueError(
                f"{type(self).__name__} looks at the classifier that it defends, and was shown none: put it into a "
                "Defence, or bind one."
            )
        return self._victim

    def bind(self, classifier: nn.Module) -> None:
        """Set the victim of this purifier and of every purifier inside it, for methods that use it (masks, guidance).

        Called before any image is purified. A method with requirements on the victim (the name of a stage) extends
        this, and refuses an unfit one here.
        """
        object.__setattr__(self, "_victim", classifier)  # plain assignment would register it as a submodule
        for inner in _outermost(self):
            inner.bind(classifier)

    def derived(self) -> dict[str, float]:
        """Quantities computed from the arguments that are shown on the card, by name (a sigma)."""
        return {}

    def prepare(self, x: Tensor, noise: NoiseStream) -> Context:
        """The context of images ``x`` (B, C, H, W): the entries named in `holds`, tensors with B rows each.

        These are quantities that are computed from ``x`` before it is purified, and that an attack may hold fixed; they
        are differentiable in ``x``. A quantity that an attack must not hold fixed does not belong here.
        """
        return {}

    @abstractmethod
    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        """Purify ``x``, (B, C, H, W) in [0, 1], with all random numbers from ``noise`` (B rows).

        ``context`` has the entries named in `holds`. The returned trace must have those named in ``wants``, which are
        among `offers`.
        """

    def forward(
        self,
        x: Tensor,
        noise: NoiseStream,
        gradient: GradientMode = "exact",
        context: Context | None = None,
        wants: Collection[str] = frozenset(),
    ) -> Purified:
        """Purify images. Final: subclasses implement `run`.

        Args:
            x: (B, C, H, W) in [0, 1].
            noise: B rows.
            gradient: how the result is differentiated.
            context: entries of `holds` that are used instead of those that `prepare` computes from ``x``.
            wants: the names of the trace entries to return.

        Raises:
            ValueError: if the method does not support a mode or an entry, or a shape is wrong.
        """
        # Where no gradient is taken, the default "exact" is accepted even of a method that does not support it.
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
        """Refuse a gradient mode (None: no gradient is taken), held context entries or wanted trace entries that this
        method lacks.

        Raises:
            ValueError: if it lacks one, with the names of those that it has.
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
        """The context from `prepare`, checked to be a mapping. Final.

        Raises:
            ValueError: if `prepare` returned anything else.
        """
        found = self.prepare(x, noise)
        if not isinstance(found, Mapping):
            raise ValueError(f"{type(self).__name__}.prepare returned {_kind(found)}; it must return tensors by name.")
        return dict(found)

    def complete(self, x: Tensor, noise: NoiseStream, given: Context) -> Context:
        """The context for `run`: the entries of ``given``, and the others from `prepare` of ``x``.

        A method made of several purifiers passes ``given`` on instead, since each of them completes its own context
        from the image that reaches it.

        Raises:
            ValueError: if `prepare` did not return exactly the entries of `holds`, with a row for each image.
        """
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
        """The result of `run`, refused if its type or a shape is wrong or a wanted trace entry is missing."""
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
    """The purifiers inside ``module``, without those nested in another purifier."""
    for part in module.children():
        if isinstance(part, Purifier):
            yield part
        else:
            yield from _outermost(part)


def _without_rows(context: Mapping[str, Tensor], rows: int) -> list[str]:
    """The names of the entries that are not tensors with ``rows`` rows."""
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
    """``images`` (V, B, ...), unchanged bit for bit (x + (y - x) would round), with the identity as their Jacobian with
    respect to ``x``."""
    return _StraightThrough.apply(x, images)  # type: ignore[return-value]
