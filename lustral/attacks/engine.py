"""The engine answers an attack's queries: EOT copies are folded into rows, and networks run on padded chunks of R rows.

Every network call has the same shape. So nothing is recompiled, and the bits of an image's result depend neither on the
other images of the batch, nor on its place among them, its shard or a restart: the last bits of a convolution differ
between input shapes, but not between the rows of one shape.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from lustral.attacks.objectives import Objective
from lustral.attacks.victim import Judged, Victim, group_size
from lustral.diffusion import Context
from lustral.noise import DRAWS, NoiseStream
from lustral.purifiers import GradientMode, Purifier, Variant
from lustral.rows import Runtime
from lustral.votes import strictly_right, votes

WORKING_SET = 16
"""How many times R rows are handed to a defence that chunks its network calls itself. A larger set leaves less padding
in those calls; it changes the running time, never a result."""
_EMPTY: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class Answer:
    """The answer to a query, one row per image.

    Attributes:
        loss: (B,) the objective over the draws.
        rank: (B,) the objective of the merged logits, without terms that only steer the search (`Objective.plain`).
        gradient: (B, C, H, W) of the loss.
        logits: (N, B, K) of every draw, N = 1 for a deterministic defence. The iterate was found on other draws, so
            ranking it by these is unbiased.
        right_rows: (B,) number of correctly classified draws.
        zero_rows: (B,) how many of these have a gradient that is zero everywhere. (Misclassified draws do not count:
            some losses are flat there, which is no sign of masked gradients.)
        trace: (N, B, ...) each, the wanted entries and those that the objective needs, of every draw, without a graph.
    """

    loss: Tensor
    rank: Tensor
    gradient: Tensor
    logits: Tensor
    right_rows: Tensor
    zero_rows: Tensor
    trace: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Seen:
    """One chunk's answers: ``views`` (V, R, K), which the objective takes, merged ``logits`` (R, K), and the trace."""

    views: Tensor
    logits: Tensor
    trace: dict[str, Tensor]


class Engine:
    """Queries a defence for logits and gradients.

    Args:
        defence: the victim.
        rows: R, the number of rows of every network call. R decides the last bits of every number, so it is part of a
            run's fingerprint; memory budgets never change it.
        observe: called with (task, step, number of steps) during an attack, and during any other task with a name.
        graph_budget: bytes that autograd graphs may take when they are kept instead of recomputed.
    """

    def __init__(
        self,
        defence: Victim,
        rows: int,
        observe: Callable[[str, int, int], None] | None = None,
        graph_budget: float = 0.0,
    ) -> None:
        self.rows, self.runtime = rows, Runtime(rows, graph_budget)
        self.defence = defence
        self.observe = observe or (lambda task, step, num_steps: None)

    def through(self, surrogate: Purifier | Variant | None) -> "Engine":
        """The same engine on the defence with ``surrogate`` in place of its purifier; the engine itself for None.

        Raises:
            ValueError: if the defence has no purifier.
        """
        if surrogate is None:
            return self
        exchange = getattr(self.defence, "with_purifier", None)
        if exchange is None:
            raise ValueError(f"{type(self.defence).__name__} has no purifier that a surrogate could stand in for.")
        return self.on(exchange(surrogate))

    def on(self, defence: Victim) -> "Engine":
        """The same engine on another defence, with the same runtime."""
        other = copy.copy(self)
        other.defence = defence
        return other

    def observed(self, observe: Callable[[str, int, int], None]) -> "Engine":
        """The same engine, reporting to another observer."""
        other = copy.copy(self)
        other.observe = observe
        return other

    @property
    def group_size(self) -> int:
        """m, the number of images that the defence judges together."""
        return group_size(self.defence)

    def logits(self, x: Tensor, noise: NoiseStream, draws: int = 1, task: str = "") -> Tensor:
        """(draws, B, K) logits of ``x`` (B, C, H, W), each draw with its own noise, without a graph. Progress is
        reported to the observer if ``task`` is not empty."""
        return self.judge(x, noise, draws, task=task)[0]

    def judge(
        self,
        x: Tensor,
        noise: NoiseStream,
        draws: int = 1,
        wants: Collection[str] = (),
        task: str = "",
        first: int = 0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`logits`, and the trace entries named in ``wants``, (draws, B, ...) each; the first draw is number
        ``first``."""
        drawn = self._draws(draws)
        found: list[Judged] = []
        done = 0
        with torch.no_grad():
            for image, stream, used in self._chunks(len(x), noise.repeat(drawn, first if self.defence.random else 0)):
                if task:
                    self.observe(task, done, drawn * len(x))
                done += used
                judged = self.defence(x[image], stream, wants=wants) if wants else self.defence(x[image], stream)
                found.append(Judged(judged.logits[:used], {name: judged.trace[name][:used] for name in wants}))

        def every(parts: list[Tensor]) -> Tensor:
            values = torch.cat(parts).unflatten(0, (drawn, len(x)))
            return values.expand(draws, *values.shape[1:])

        trace = {name: every([judged.trace[name] for judged in found]) for name in wants}
        return every([judged.logits for judged in found]), trace

    def counts(self, x: Tensor, noise: NoiseStream, draws: int, task: str = "") -> Tensor:
        """(B, K) float64: how many of ``draws`` draws choose each class for ``x`` (B, C, H, W).

        A draw with a tie or NaN chooses none. Meant for many draws: logits are kept for one working set at a time.

        Raises:
            ValueError: if ``draws`` is below 1, or above the number of draws that a noise stream tells apart.
        """
        if not 1 <= draws <= DRAWS:
            raise ValueError(f"{draws} draws are asked for; a noise stream tells 1 to {DRAWS} apart.")
        if not self.defence.random:
            return votes(self.logits(x, noise)) * draws
        block = max(1, self.rows * WORKING_SET // len(x))
        total: Tensor | None = None
        for first in range(0, draws, block):
            if task:
                self.observe(task, first, draws)
            found = votes(self.judge(x, noise, min(block, draws - first), first=first)[0])
            total = found if total is None else total + found
        assert total is not None
        return total

    def answer(
        self,
        x: Tensor,
        y: Tensor,
        noise: NoiseStream,
        objective: Objective,
        draws: int = 1,
        gradient: GradientMode = "exact",
        context: Mapping[str, Tensor] = _EMPTY,
        clean: Tensor | None = None,
        given: Mapping[str, Tensor] = _EMPTY,
        wants: Collection[str] = (),
        aim: Tensor | None = None,
    ) -> Answer:
        """The objective of ``x`` (B, C, H, W) and its gradient, over ``draws`` draws of the defence's noise.

        Where the objective is not a mean over draws, a first pass without a graph gives its derivatives with respect to
        each draw's logits; a second pass back-propagates these chunk by chunk.

        Args:
            x: (B, C, H, W) images in [0, 1].
            y: (B,) labels.
            noise: B rows.
            objective: the loss to be raised.
            draws: N; a deterministic defence is asked once, whatever the number.
            gradient: how the defence is differentiated.
            context: (B, N, ...) each, context entries handed to the purifier, one per draw.
            clean: (B, C, H, W) images. The purifier is handed the context that `prepare` computes from them with the
                query's own noise, instead of that of ``x``.
            given: (B, ...) each, for the objective.
            wants: entries of the trace that are returned with the answer.
            aim: (B,) bool, which images' losses are raised; None: all. (In a group, the gradient at each image is that
                of the losses of all images of the group that are aimed at.)

        Raises:
            ValueError: if ``given`` lacks an entry that the objective expects, if a trace entry that it needs has no
                gradient, or if B is not a multiple of the group size.
        """
        draws, batch = self._draws(draws), len(x)
        if lacking := [name for name in objective.expects if name not in given]:
            raise ValueError(
                f"{type(objective).__name__} takes the {', '.join(lacking)} of each image, which nobody chose: use an "
                "attack that does, such as lustral.attacks.APGDTargeted for targets, or another objective."
            )
        asked = list(dict.fromkeys((*objective.needs, *wants)))

        def look(leaf: Tensor, row: Tensor, stream: NoiseStream) -> _Seen:
            image = row % batch
            held: Context = {name: values[image, row // batch] for name, values in context.items()}
            if clean is not None:
                with torch.no_grad():
                    prepared = self.defence.prepare(clean[image], stream)  # type: ignore[attr-defined]
                    held = {**prepared, **held}
            options: dict[str, Any] = ({"context": held} if held else {}) | ({"wants": asked} if asked else {})
            judged = self.defence(leaf, stream, gradient, **options)
            _check_needs(objective, leaf, judged)
            return _Seen(judged.logits[None] if judged.views is None else judged.views, judged.logits, judged.trace)

        loss, seeds = (
            (None, {}) if objective.separable else self._seeds(look, x, y, noise, objective, draws, given, aim)
        )
        total, zero, right = torch.zeros_like(x), x.new_zeros(batch), x.new_zeros(batch)
        losses, chunks, traces, first, voted = [], [], [], 0, False
        for image, stream, used in self._chunks(batch, noise.repeat(draws)):
            row = self._rows_of(first, len(image), draws * batch, image.device)
            leaf = x[image].detach().requires_grad_()
            with torch.enable_grad():
                seen = look(leaf, row, stream)
                if objective.separable:
                    each = _one_draw(objective, seen, y[image], {name: rows[image] for name, rows in given.items()})
                    row_loss = each[:used] / draws
                    losses.append(row_loss.detach())
                    scalar = (row_loss if aim is None else row_loss.masked_fill(~aim[image[:used]], 0.0)).sum()
                else:
                    parts = [(seen.views[:, :used] * seeds[_LOGITS][:, first : first + used]).sum()]
                    parts += [
                        (seen.trace[name][:used] * seeds[name][first : first + used]).sum() for name in objective.needs
                    ]
                    scalar = sum(parts[1:], parts[0])
            found = _gradient(scalar, leaf)
            logits = seen.logits[:used].detach()
            voted |= seen.logits is not seen.views and len(seen.views) > 1
            chunks.append(logits)
            traces.append({name: seen.trace[name][:used].detach() for name in asked})
            _add_rows(total, found[:used], first)
            still = strictly_right(logits, y[image[:used]])
            _add_rows(right, still.to(x.dtype), first)
            _add_rows(zero, (still & (found[:used].flatten(1) == 0).all(1)).to(x.dtype), first)
            first += used
            del seen, scalar
        logits = torch.cat(chunks).view(draws, batch, -1)
        if loss is None:
            loss = _sum_draws(torch.cat(losses).view(draws, batch))
        rank = loss if objective.plain is objective and not voted else objective.plain(logits, y)
        trace = {name: torch.cat([each[name] for each in traces]).unflatten(0, (draws, batch)) for name in asked}
        return Answer(loss, objective.ranked(rank, trace), total, logits, right, zero, trace)

    def _seeds(
        self,
        look: Callable[[Tensor, Tensor, NoiseStream], _Seen],
        x: Tensor,
        y: Tensor,
        noise: NoiseStream,
        objective: Objective,
        draws: int,
        given: Mapping[str, Tensor],
        aim: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,) losses, and their derivatives with respect to the logits of each draw's views, (V, draws * B, K), and to
        each needed entry of the trace, (draws * B, ...)."""
        batch, first = len(x), 0
        views: list[Tensor] = []
        traces: dict[str, list[Tensor]] = {name: [] for name in objective.needs}
        with torch.no_grad():
            for image, stream, used in self._chunks(batch, noise.repeat(draws)):
                seen = look(x[image], self._rows_of(first, len(image), draws * batch, image.device), stream)
                views.append(seen.views[:, :used])
                for name, parts in traces.items():
                    parts.append(seen.trace[name][:used])
                first += used
        stacked = torch.cat(views, dim=1)
        count = len(stacked)
        leaf = rearrange(stacked, "view (draw row) k -> (draw view) row k", draw=draws).requires_grad_()
        trace = {name: torch.cat(parts).unflatten(0, (draws, batch)).requires_grad_() for name, parts in traces.items()}
        with torch.enable_grad():
            wide = {name: values.repeat_interleave(count, 0) for name, values in trace.items()}
            loss = objective(leaf, y, wide if count > 1 else trace, given)
            total = (loss if aim is None else loss.masked_fill(~aim, 0.0)).sum()
            by_logits, *others = torch.autograd.grad(total, [leaf, *trace.values()], materialize_grads=True)
        seeds = {name: by.flatten(0, 1) for name, by in zip(trace, others, strict=True)}
        seeds[_LOGITS] = rearrange(by_logits, "(draw view) row k -> view (draw row) k", draw=draws)
        return loss.detach(), seeds

    def _draws(self, draws: int) -> int:
        """The number of draws to compute: one for a deterministic defence, whose draws are all equal."""
        return draws if self.defence.random else 1

    @property
    def _cuts_itself(self) -> bool:
        """Whether the defence is given more than R rows at a time, and chunks its network calls itself."""
        return getattr(self.defence, "ragged", False) or self.group_size > 1

    def _rows_of(self, first: int, size: int, total: int, device: torch.device) -> Tensor:
        """(size,) row numbers of the chunk that begins at ``first``, among all rows, draw by draw; padding repeats the
        last row."""
        return torch.arange(first, first + size, device=device).clamp_max(total - 1)

    def _chunks(self, batch: int, noise: NoiseStream) -> Iterator[tuple[Tensor, NoiseStream, int]]:
        """Chunks of rows, draw by draw: (R,) image numbers, a stream of R rows, and how many rows are not padding.

        A defence whose rows differ in cost, or that judges groups, gets chunks of up to `WORKING_SET` times R rows
        (whole groups, no padding), and chunks its network calls itself.
        """
        if getattr(self.defence, "runtime", None) is not self.runtime:
            self.defence.runtime = self.runtime
        total, size = len(noise), self.group_size
        if batch % size:
            below = batch // size * size
            raise ValueError(
                f"{batch} images are no whole number of groups of {size}, which this defence judges together: give "
                f"{f'{below} or ' if below else ''}{below + size}."
            )
        if self._cuts_itself:
            chunk = max(1, self.rows * WORKING_SET // size) * size
            for row in torch.arange(total, device=noise.index.device).split(chunk):
                yield row % batch, noise.select(row), len(row)
            return
        for first in range(0, total, self.rows):
            row = self._rows_of(first, self.rows, total, noise.index.device)
            used = min(self.rows, total - first)
            with self.runtime.filling(used / self.rows):
                yield row % batch, noise.select(row), used


_LOGITS = "logits of the views"


def _check_needs(objective: Objective, x: Tensor, judged: Judged) -> None:
    """Refuse an objective that follows a trace entry without a gradient."""
    for name in objective.needs:
        if torch.is_grad_enabled() and x.requires_grad and not judged.trace[name].requires_grad:
            raise ValueError(
                f"{type(objective).__name__} follows the {name}, but this purifier takes it as a constant: attack a "
                "variant that differentiates it (for SSNI's score --model.attack.surrogate lustral.purifiers.Variant "
                "with changes {rounding: straight_through}), or choose another objective."
            )


def _one_draw(objective: Objective, seen: _Seen, y: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """(R,) losses of rows that are one draw each. Where views vote, the objective takes each view as a draw."""
    trace = {name: seen.trace[name].expand(len(seen.views), *seen.trace[name].shape) for name in objective.needs}
    return objective(seen.views, y, trace, given)


def _gradient(scalar: Tensor, leaf: Tensor) -> Tensor:
    if not scalar.requires_grad:  # the detached mode: nothing depends on the input
        return torch.zeros_like(leaf)
    # The trainable parameters of a classifier in training make a graph that may not reach the input.
    found = torch.autograd.grad(scalar, leaf, allow_unused=True)[0]
    return torch.zeros_like(leaf) if found is None else found


def _add_rows(total: Tensor, rows: Tensor, first: int) -> None:
    """Add ``rows``, which are draw-major and begin at row number ``first``, to their images in ``total``.

    Each draw is added by itself and in order, so the rounding of an image's sum does not depend on where chunks end.
    """
    batch, done = len(total), 0
    while done < len(rows):
        image = (first + done) % batch
        count = min(batch - image, len(rows) - done)
        total[image : image + count] += rows[done : done + count]
        done += count


def _sum_draws(losses: Tensor) -> Tensor:
    """(B,) sum of ``losses`` (draws, B) over draws, in order (see `_add_rows`)."""
    total = losses[0].clone()
    for draw in losses[1:]:
        total += draw
    return total
