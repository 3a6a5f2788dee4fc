"""The unrolled reverse process and its exact input gradient at constant graph memory.

`unroll` applies ``x <- step(i, x, *inputs)`` and differentiates the whole loop with a vector-Jacobian product a
step at a time: the forward pass stores one state a step, the backward pass runs each step again with a graph and
pulls the gradient through it. With frozen weights an input-only backward costs one forward, so T steps cost 3 T
network calls, and 2 T where the graphs fit the budget and are kept. Both are
``torch.equal``: the same operations run on the same numbers.

Two rules make it right. Everything that depends on the input is an explicit argument of the step: a captured
tensor would be a constant, and its share of the gradient silently lost. And a step draws its noise from a keyed
stream, so that the second run replays the first.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Step = Callable[..., Tensor]
"""``step(i, x, *inputs) -> x``: pure in its arguments, (B, C, H, W) to (B, C, H, W)."""


def unroll(step: Step, num_steps: int, x: Tensor, inputs: Sequence[Tensor] = (), graph_budget: float = 0.0) -> Tensor:
    """Apply ``step`` for i = 0 ... num_steps - 1, with an exact gradient for ``x`` and every one of ``inputs``.

    Args:
        step: one reverse step.
        num_steps: how many.
        x: the state at the start, (B, C, H, W).
        inputs: every other tensor that depends on the attacked image.
        graph_budget: bytes that graphs of steps may take in all; steps beyond it are run again in the backward
            pass. It changes time and memory, never a bit of the result.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *inputs)):
        return _Unrolled.apply(step, num_steps, graph_budget, x, *inputs)  # type: ignore[return-value]
    for i in range(num_steps):
        x = step(i, x, *inputs)
    return x


class _Graph:
    """One step run with a graph: the leaves it was given, and what came out."""

    def __init__(self, step: Step, i: int, x: Tensor, inputs: Sequence[Tensor], needs: Sequence[bool]) -> None:
        self.leaves = [t.detach().requires_grad_(need) for t, need in zip((x, *inputs), needs, strict=True)]
        with torch.enable_grad():
            self.output = step(i, *self.leaves)

    def pull(self, gradient: Tensor) -> list[Tensor | None]:
        """The gradient at each leaf that asked for one; None where nothing arrives."""
        wanted = [leaf for leaf in self.leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(self.output, wanted, gradient, allow_unused=True))
        return [next(found) if leaf.requires_grad else None for leaf in self.leaves]


class _SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that graphs built inside it hold on to, weights apart and each storage once."""

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
    def forward(ctx: Any, step: Step, num_steps: int, graph_budget: float, x: Tensor, *inputs: Tensor) -> Tensor:
        ctx.step, ctx.inputs = step, tuple(t.detach() for t in inputs)
        # The state depends on every input after the first step, so it always needs a gradient.
        ctx.needs = (True, *(t.requires_grad for t in inputs))
        device = x.device.type
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        ctx.states, ctx.graphs = [], {}
        state, first_kept = x.detach(), num_steps
        for i in range(num_steps):
            ctx.states.append(state)
            graph = None
            if graph_budget > 0 and i == 0:
                saved = _SavedBytes()
                with saved:
                    graph = _Graph(step, i, state, ctx.inputs, ctx.needs)
                # The last steps are kept: the backward pass frees them before it needs room to run one again.
                first_kept = num_steps - int(min(num_steps, graph_budget / max(saved.total, 1)))
            elif i >= first_kept:
                graph = _Graph(step, i, state, ctx.inputs, ctx.needs)
            state = step(i, state, *ctx.inputs) if graph is None else graph.output.detach()
            if graph is not None and i >= first_kept:
                ctx.graphs[i] = graph
        return state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        totals: list[Tensor | None] = [None] * len(ctx.inputs)
        device, dtype, enabled = ctx.autocast
        for i in reversed(range(len(ctx.states))):
            graph = ctx.graphs.pop(i, None)
            if graph is None:
                with torch.autocast(device, dtype=dtype, enabled=enabled):
                    graph = _Graph(ctx.step, i, ctx.states[i], ctx.inputs, ctx.needs)
            state_gradient, *input_gradients = graph.pull(gradient)
            del graph
            gradient = torch.zeros_like(gradient) if state_gradient is None else state_gradient
            for k, found in enumerate(input_gradients):
                total = totals[k]
                if found is not None:
                    totals[k] = found if total is None else total + found
        return None, None, None, gradient, *totals
