"""The engine answers an attack's queries: EOT copies folded into rows, network calls in padded chunks of R rows.

One shape for every network call means no recompilation, and an image's bits that depend neither on its
neighbours, nor on its order, its shard or a restart: between shapes the last bits of a convolution differ, between
slots of one shape they do not.
"""

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lustral.attacks.base import Judged, Victim
from lustral.attacks.objectives import Objective
from lustral.noise import NoiseStream
from lustral.purifiers import GradientMode, Pieces, Purifier, RoundPurifier

WORKING_SET = 16
"""Network calls' worth of rows that are handed to a defence whose rows need different numbers of calls: the more, the
fuller its calls. Changes time, never a result."""
LOGITS = "logits"
"""The name of the logits among the things that an objective looks at."""


@dataclass(frozen=True)
class Answer:
    """What a query returns, one row a case.

    Attributes:
        loss: (B,) the objective over the draws.
        rank: (B,) the same without what only steers the attack (see `Objective.plain`).
        gradient: (B, C, H, W) of the loss.
        logits: (N, B, K) of every draw. The iterate had not seen these draws, so they rank it honestly.
        right_rows: (B,) how many draws are right.
        zero_rows: (B,) how many of these have a gradient that is zero everywhere. (Some losses rest once a draw is
            wrong, and that hides nothing.)
    """

    loss: Tensor
    rank: Tensor
    gradient: Tensor
    logits: Tensor
    right_rows: Tensor
    zero_rows: Tensor


class Engine:
    """Queries a defence for logits and gradients.

    Args:
        defence: the victim.
        rows: R, the rows of every network call. It decides the last bits of every number, so it is part of a
            run's fingerprint; memory budgets never change it.
        observe: called with (task, step, number of steps) as an attack goes on, or another task that has a name.
    """

    def __init__(self, defence: Victim, rows: int, observe: Callable[[str, int, int], None] | None = None) -> None:
        if rows < 1:
            raise ValueError(f"rows is {rows}; a network call needs at least one row.")
        self.rows = rows
        self._victim(defence)
        self._used: float | Pieces = 1.0 if self._pieces is None else self._pieces
        self._main = self
        self.observe = observe or (lambda task, step, num_steps: None)

    def _victim(self, defence: Victim) -> None:
        self.defence = defence
        self._pieces: Pieces | None = getattr(defence, "pieces", None) if getattr(defence, "ragged", False) else None
        if self._pieces is not None:
            self._pieces.rows = self.rows

    def through(self, surrogate: Purifier) -> "Engine":
        """The same engine on the defence with ``surrogate`` in its purifier's place."""
        exchange = getattr(self.defence, "with_purifier", None)
        if exchange is None:
            raise ValueError(f"{type(self.defence).__name__} has no purifier that a surrogate could stand in for.")
        return self.on(exchange(surrogate))

    def on(self, defence: Victim) -> "Engine":
        """The same engine on another defence. It tells the first one how full its calls are."""
        other = copy.copy(self)
        other._victim(defence)
        return other

    def observed(self, observe: Callable[[str, int, int], None]) -> "Engine":
        """The same engine, telling another observer."""
        other = copy.copy(self)
        other.observe = observe
        return other

    @property
    def filled(self) -> float:
        """Share of the present network call's rows that are not padding."""
        return self._used.filled if isinstance(self._used, Pieces) else self._used

    def logits(self, x: Tensor, noise: NoiseStream, draws: int = 1, task: str = "") -> Tensor:
        """(draws, B, K) logits of ``x`` (B, C, H, W), each draw with its own noise, without a graph. The
        observer is told of a ``task`` that has a name."""
        return self.judge(x, noise, draws, task=task)[0]

    def judge(
        self, x: Tensor, noise: NoiseStream, draws: int = 1, follow: Collection[str] = (), task: str = ""
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`logits`, and (draws, B, ...) of what ``follow`` names, as far as the purifier's trace has it."""
        drawn = self._draws(draws)
        found: dict[str, list[Tensor]] = {}
        done = 0
        with torch.no_grad():
            for image, stream, used in self._chunks(len(x), noise.repeat(drawn)):
                if task:
                    self.observe(task, done, drawn * len(x))
                done += used
                judged = self.defence(x[image], stream)
                followed = {name: judged.trace[name] for name in follow if name in judged.trace}
                for name, values in {LOGITS: judged.logits, **followed}.items():
                    found.setdefault(name, []).append(values[:used])
        stacked = {name: torch.cat(parts).unflatten(0, (drawn, len(x))) for name, parts in found.items()}
        every = {name: values.expand(draws, *values.shape[1:]) for name, values in stacked.items()}
        return every.pop(LOGITS), every

    def answer(
        self,
        x: Tensor,
        y: Tensor,
        noise: NoiseStream,
        objective: Objective,
        draws: int = 1,
        gradient: GradientMode = "exact",
        anchor: Tensor | None = None,
        target: Tensor | None = None,
    ) -> Answer:
        """The objective of ``x`` (B, C, H, W) and its gradient, over ``draws`` draws of the defence's noise.

        ``anchor`` is the clean images, for gradient modes that look at them; ``target`` (B,) the classes to be reached,
        for objectives that have targets.
        Where the objective is not a mean over draws, its derivatives by each draw's logits are found first (a pass
        without a graph), then pulled back chunk by chunk.
        """
        draws, batch = self._draws(draws), len(x)

        def look(x: Tensor, image: Tensor, stream: NoiseStream) -> dict[str, Tensor]:
            frozen = (anchor[image],) if gradient == "frozen" and anchor is not None else ()
            return _needed(objective, gradient, x, self.defence(x, stream, gradient, *frozen))

        with _measuring(self.defence, objective):
            whole = _toward(objective, target)
            loss, seeds = (None, {}) if objective.separable else self._seeds(look, x, y, noise, whole, draws)
            total, zero, right = torch.zeros_like(x), x.new_zeros(batch), x.new_zeros(batch)
            losses, chunks, first = [], [], 0
            for image, stream, used in self._chunks(batch, noise.repeat(draws)):
                leaf = x[image].detach().requires_grad_()
                with torch.enable_grad():
                    seen = look(leaf, image, stream)
                    if objective.separable:
                        single = _toward(objective, None if target is None else target[image])
                        row_loss = _one_draw(single, seen, y[image])[:used] / draws
                        scalar = row_loss.sum()
                        losses.append(row_loss.detach())
                    else:
                        parts = [(seen[name][:used] * seeds[name][first : first + used]).sum() for name in seen]
                        scalar = sum(parts[1:], parts[0])
                found = _gradient(scalar, leaf)
                chunks.append(seen[LOGITS][:used].detach())
                _add_rows(total, found[:used], first)
                still = seen[LOGITS][:used].argmax(-1) == y[image[:used]]
                _add_rows(right, still.to(x.dtype), first)
                _add_rows(zero, (still & (found[:used].flatten(1) == 0).all(1)).to(x.dtype), first)
                first += used
                del seen, scalar
        logits = torch.cat(chunks).view(draws, batch, -1)
        if loss is None:
            loss = _sum_draws(torch.cat(losses).view(draws, batch))
        rank = loss if objective.plain is objective else objective.plain(logits, y, {})
        return Answer(loss, rank, total, logits, right, zero)

    def _seeds(
        self,
        look: Callable[[Tensor, Tensor, NoiseStream], dict[str, Tensor]],
        x: Tensor,
        y: Tensor,
        noise: NoiseStream,
        objective: Objective,
        draws: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (B,), and its derivative by all that it looks at, in draw-major rows."""
        found: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            for image, stream, used in self._chunks(len(x), noise.repeat(draws)):
                for name, values in look(x[image], image, stream).items():
                    found.setdefault(name, []).append(values[:used])
        leaves = {name: torch.cat(parts).unflatten(0, (draws, len(x))) for name, parts in found.items()}
        with torch.enable_grad():
            for leaf in leaves.values():
                leaf.requires_grad_()
            loss = objective(leaves[LOGITS], y, {name: leaves[name] for name in objective.needs})
            seeds = torch.autograd.grad(loss.sum(), list(leaves.values()))
        return loss.detach(), {name: seed.flatten(0, 1) for name, seed in zip(leaves, seeds, strict=True)}

    def _draws(self, draws: int) -> int:
        """A deterministic defence gives the same answer at every draw, so one is asked for."""
        return draws if self.defence.random else 1

    def _chunks(self, batch: int, noise: NoiseStream) -> Iterator[tuple[Tensor, NoiseStream, int]]:
        """(R,) image numbers, their R streams, and how many of them are not padding; draw by draw.

        A defence whose rows differ in cost gets many calls' worth of rows, and sees to the shape of its calls itself.
        """
        total = len(noise)
        if self._pieces is not None:
            self._main._used = self._pieces
            for row in torch.arange(total, device=noise.index.device).split(self.rows * WORKING_SET):
                yield row % batch, noise.select(row), len(row)
            return
        for first in range(0, total, self.rows):
            row = torch.arange(first, first + self.rows, device=noise.index.device).clamp_max(total - 1)
            used = min(self.rows, total - first)
            self._main._used = used / self.rows
            yield row % batch, noise.select(row), used


def _needed(objective: Objective, gradient: GradientMode, x: Tensor, judged: Judged) -> dict[str, Tensor]:
    """What the objective looks at, one row each: the logits, and what it needs of the trace."""
    for name in objective.needs:
        if name not in judged.trace:
            raise ValueError(
                f"{type(objective).__name__} follows the {name} in the purifier, but the trace of this one has only "
                f"{', '.join(judged.trace) or 'nothing'}: choose another objective or purifier."
            )
        if torch.is_grad_enabled() and x.requires_grad and not judged.trace[name].requires_grad:
            raise ValueError(
                f"{type(objective).__name__} follows the {name}, but the gradient {gradient!r} of this purifier takes "
                "it as a constant: choose an attack.gradient that differentiates it (for SSNI's score smooth or "
                "straight_through), or another objective."
            )
    return {LOGITS: judged.logits, **{name: judged.trace[name] for name in objective.needs}}


def _toward(objective: Objective, target: Tensor | None) -> Objective:
    return objective if target is None else objective.toward(target)


def _one_draw(objective: Objective, seen: dict[str, Tensor], y: Tensor) -> Tensor:
    """(R,) losses of rows that are one draw each."""
    return objective(seen[LOGITS][None], y, {name: seen[name][None] for name in objective.needs})


@contextmanager
def _measuring(defence: Victim, objective: Objective) -> Iterator[None]:
    """Have the purifier measure what costs something, as long as an objective that looks at it is asked for."""
    purifier = getattr(defence, "purifier", None)
    parts = [] if purifier is None else [part for part in purifier.modules() if isinstance(part, RoundPurifier)]
    for part in parts:
        part.measures_deviation = "deviation" in objective.needs
    try:
        yield
    finally:
        for part in parts:
            part.measures_deviation = False


def _gradient(scalar: Tensor, leaf: Tensor) -> Tensor:
    if not scalar.requires_grad:  # the detached mode: nothing depends on the input
        return torch.zeros_like(leaf)
    return torch.autograd.grad(scalar, leaf)[0]


def _add_rows(total: Tensor, rows: Tensor, first: int) -> None:
    """Add draw-major rows, the first of them row ``first``, to their images: one addition a draw, in its order, so
    that an image's sum does not depend on where chunks end."""
    batch, done = len(total), 0
    while done < len(rows):
        image = (first + done) % batch
        count = min(batch - image, len(rows) - done)
        total[image : image + count] += rows[done : done + count]
        done += count


def _sum_draws(losses: Tensor) -> Tensor:
    """(B,) sum over draws in their order (see `_add_rows`)."""
    total = losses[0].clone()
    for draw in losses[1:]:
        total += draw
    return total
