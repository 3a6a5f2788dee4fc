"""The unrolled reverse process and its exact input gradient at constant graph memory.

`unroll` applies ``state <- step(i, state, context)`` and differentiates the loop by vector-Jacobian products, one step
at a time: the forward pass stores one state per step; the backward pass recomputes each step with a graph and
back-propagates through it. With frozen weights, an input-only backward pass costs as much as a forward pass. So T steps
cost as much as 3 T network calls, or 2 T where the graphs fit the budget and are kept. Both give ``torch.equal``
gradients: the same operations run on the same numbers.

Two rules make this correct. First, everything that depends on the input must be in the state or the context of the
step: a captured tensor would be treated as a constant, and its part of the gradient silently lost. The graph of the
first step, and without a budget also that of the last one, is searched for such tensors and for trainable parameters.
Second, a step takes its noise from a keyed stream, so that the recomputation uses the same noise.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Context = dict[str, Tensor]
"""What belongs to an image besides its pixels (a level, a mask, latents): tensors by name, with one row per image."""
State = TypeVar("State", Tensor, dict[str, Tensor])
Step = Callable[[int, State, Context], State]
"""``step(i, state, context) -> state``: pure in its arguments, row by row."""


def unroll(
    step: Step[State], num_steps: int, state: State, context: Mapping[str, Tensor] | None = None, budget: float = 0.0
) -> State:
    """Apply ``step`` for i = 0 ... num_steps - 1, with an exact gradient for the state and everything in the context.

    Args:
        step: one step, a pure function of its arguments.
        num_steps: number of steps.
        state: the initial state: a tensor, or tensors by name (an image and a running sum, an optimiser's moments),
            whose names, shapes and types must not change. Floating-point tensors are differentiated, others are not.
        context: every other tensor that depends on the attacked image, by name; passed to each step unchanged.
        budget: bytes that the kept graphs of steps may take in all; other steps are recomputed in the backward pass. It
            changes time and memory, never a bit of the result.

    Raises:
        ValueError: when gradients are taken, if a step uses a tensor that requires a gradient and is neither in the
            state nor in the context (a trainable parameter or a captured tensor); or if a step changes the names or
            kinds of its state.
    """
    context = dict(context or {})
    loose = _Loop(step, _Names(state, context))
    tensors = loose.names.flat(state, context)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        found = _Unrolled.apply(loose, num_steps, budget, *tensors)
        return loose.names.state(found)  # type: ignore[arg-type]
    for i in range(num_steps):
        state = step(i, state, context)
    return state


class _Names:
    """Converts a state and a context to a flat list of tensors, each sorted by name, and back: a custom autograd
    function does not see tensors inside a dict."""

    def __init__(self, state: Tensor | dict[str, Tensor], context: Context) -> None:
        self.of_state = sorted(state) if isinstance(state, dict) else None
        self.of_context = sorted(context)
        self.size = 1 if self.of_state is None else len(self.of_state)

    def flat(self, state: Tensor | dict[str, Tensor], context: Context) -> list[Tensor]:
        return [*self.flat_state(state), *(context[name] for name in self.of_context)]

    def flat_state(self, state: Tensor | dict[str, Tensor]) -> list[Tensor]:
        if self.of_state is None:
            assert isinstance(state, Tensor)
            return [state]
        assert isinstance(state, dict)
        if sorted(state) != self.of_state:
            raise ValueError(f"A step turned a state of {self.of_state} into one of {sorted(state)}: keep its names.")
        return [state[name] for name in self.of_state]

    def state(self, tensors: Sequence[Tensor]) -> Any:
        return tensors[0] if self.of_state is None else dict(zip(self.of_state, tensors, strict=True))

    def context(self, tensors: Sequence[Tensor]) -> Context:
        return dict(zip(self.of_context, tensors, strict=True))


class _Loop:
    """The step of a loop as a function of flat tensors, those of the state first."""

    def __init__(self, step: Step[Any], names: _Names) -> None:
        self._step, self.names = step, names
        self.searched = False

    def __call__(self, i: int, tensors: Sequence[Tensor]) -> list[Tensor]:
        names = self.names
        state, context = names.state(tensors[: names.size]), names.context(tensors[names.size :])
        given, found = tensors[: names.size], names.flat_state(self._step(i, state, context))
        if any(a.is_floating_point() != b.is_floating_point() for a, b in zip(given, found, strict=True)):
            raise ValueError(
                "A step turned integers or booleans of its state into floating-point numbers, or back, whose gradient "
                "would be lost: keep the types of a state."
            )
        return found


class _Graph:
    """One step computed with a graph: its input leaves and its outputs."""

    def __init__(self, loop: _Loop, i: int, tensors: Sequence[Tensor], needs: Sequence[bool]) -> None:
        self.leaves = [t.detach().requires_grad_(need) for t, need in zip(tensors, needs, strict=True)]
        with torch.enable_grad():
            self.outputs = loop(i, self.leaves)
        if not loop.searched or i == 0:  # the first step often differs from the others
            loop.searched = True
            _refuse_strangers(self.outputs, self.leaves)

    def pull(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradient at each leaf that requires one, from the gradients of the outputs; None where there is none."""
        wanted = [leaf for leaf in self.leaves if leaf.requires_grad]
        pairs = [(o, g) for o, g in zip(self.outputs, gradients, strict=True) if g is not None and o.requires_grad]
        if not pairs:
            return [None] * len(self.leaves)
        outputs, arriving = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(outputs, wanted, arriving, allow_unused=True))
        return [next(found) if leaf.requires_grad else None for leaf in self.leaves]


def _refuse_strangers(outputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
    """Refuse a graph with other leaves than ``leaves``."""
    own = {id(leaf) for leaf in leaves}
    waiting: list[Any] = [output.grad_fn for output in outputs]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)  # only the nodes of leaves have one
        if leaf is not None and id(leaf) not in own:
            if isinstance(leaf, torch.nn.Parameter):
                raise ValueError(
                    f"A parameter of shape {tuple(leaf.shape)} inside an unrolled process wants a gradient, which "
                    "would be lost: freeze the networks of a purifier (requires_grad_(False)) and attack it then."
                )
            raise ValueError(
                f"A step of an unrolled process captured a tensor of shape {tuple(leaf.shape)}, or one that depends on "
                "it, whose share of the gradient would be lost: hand it over in the context."
            )
        waiting.extend(following for following, _ in node.next_functions)


class _SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes of tensors saved by graphs that are built in this context, without weights and each storage
    once."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        super().__init__(self._count, lambda tensor: tensor)

    @property
    def total(self) -> int:
        return sum(self._sizes.values())

    def _count(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor


class _Unrolled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loop: _Loop, num_steps: int, budget: float, *tensors: Tensor) -> tuple[Tensor, ...]:
        size = loop.names.size
        ctx.loop, ctx.context = loop, [t.detach() for t in tensors[size:]]
        # After the first step the state depends on all inputs, so it always needs a gradient.
        ctx.needs = [t.is_floating_point() for t in tensors[:size]] + [t.requires_grad for t in tensors[size:]]
        device = tensors[0].device.type
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        ctx.states, ctx.graphs = [], {}
        state, first_kept = [t.detach() for t in tensors[:size]], num_steps
        for i in range(num_steps):
            ctx.states.append(state)
            graph, given = None, [*state, *ctx.context]
            if budget > 0 and i == 0:
                saved = _SavedBytes()
                with saved:
                    graph = _Graph(loop, i, given, ctx.needs)
                # The last steps are kept: the backward pass frees their graphs before it recomputes earlier steps.
                first_kept = num_steps - int(min(num_steps, budget / max(saved.total, 1)))
            elif i >= first_kept:
                graph = _Graph(loop, i, given, ctx.needs)
            state = loop(i, given) if graph is None else [t.detach() for t in graph.outputs]
            if graph is not None and i >= first_kept:
                ctx.graphs[i] = graph
        # A tensor that no step changed is an input itself, and autograd needs outputs to be other tensors.
        state = [t.view_as(t) if any(t is other for other in tensors) else t for t in state]
        ctx.mark_non_differentiable(*(t for t in state if not t.is_floating_point()))
        return tuple(state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arriving: Tensor) -> tuple[Tensor | None, ...]:
        size = ctx.loop.names.size
        needs = ctx.needs[:size]
        gradients: list[Tensor | None] = [g if need else None for g, need in zip(arriving, needs, strict=True)]
        totals: list[Tensor | None] = [None] * len(ctx.context)
        device, dtype, enabled = ctx.autocast
        for i in reversed(range(len(ctx.states))):
            graph = ctx.graphs.pop(i, None)
            if graph is None:
                with torch.autocast(device, dtype=dtype, enabled=enabled):
                    graph = _Graph(ctx.loop, i, [*ctx.states[i], *ctx.context], ctx.needs)
            found = graph.pull(gradients)
            del graph
            # A step that ignores its state has a zero gradient, not None.
            gradients = [
                torch.zeros_like(t) if g is None and need else g
                for g, need, t in zip(found[:size], needs, ctx.states[i], strict=True)
            ]
            for k, one in enumerate(found[size:]):
                total = totals[k]
                if one is not None:
                    totals[k] = one if total is None else total + one
        return None, None, None, *gradients, *totals
