"""The engine answers an attack's queries: EOT copies folded into rows, network calls in padded chunks of R rows.

One shape for every network call means no recompilation, and an image's bits that depend neither on its
neighbours, nor on its order, its shard or a restart: between shapes the last bits of a convolution differ, between
slots of one shape they do not.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lustral.attacks.base import Judged, Victim
from lustral.attacks.objectives import Objective
from lustral.noise import NoiseStream
from lustral.purifiers import GradientMode, Pieces

WORKING_SET = 16
"""Network calls' worth of rows that are handed to a defence whose rows need different numbers of calls: the more, the
fuller its calls. Changes time, never a result."""


@dataclass(frozen=True)
class Answer:
    """What a query returns, one row a case.

    Attributes:
        loss: (B,) the objective over the draws.
        gradient: (B, C, H, W) of the loss.
        logits: (N, B, K) of every draw. The iterate had not seen these draws, so they rank it honestly.
        zero_rows: (B,) share of draws whose gradient is zero everywhere.
    """

    loss: Tensor
    gradient: Tensor
    logits: Tensor
    zero_rows: Tensor


class Engine:
    """Queries a defence for logits and gradients.

    Args:
        defence: the victim.
        rows: R, the rows of every network call. It decides the last bits of every number, so it is part of a
            run's fingerprint; memory budgets never change it.
        observe: called with (task, step, number of steps) as an attack goes on.
    """

    def __init__(self, defence: Victim, rows: int, observe: Callable[[str, int, int], None] | None = None) -> None:
        if rows < 1:
            raise ValueError(f"rows is {rows}; a network call needs at least one row.")
        self.defence, self.rows = defence, rows
        self._pieces: Pieces | None = getattr(defence, "pieces", None) if getattr(defence, "ragged", False) else None
        if self._pieces is not None:
            self._pieces.rows = rows
        self._used = 1.0
        self.observe = observe or (lambda task, step, num_steps: None)

    @property
    def filled(self) -> float:
        """Share of the present network call's rows that are not padding."""
        return self._used if self._pieces is None else self._pieces.filled

    def logits(self, x: Tensor, noise: NoiseStream, draws: int = 1) -> Tensor:
        """(draws, B, K) logits of ``x`` (B, C, H, W), each draw with its own noise, without a graph."""
        drawn = self._draws(draws)
        with torch.no_grad():
            chunks = [
                self.defence(x[image], stream).logits[:used]
                for image, stream, used in self._chunks(len(x), noise.repeat(drawn))
            ]
        logits = torch.cat(chunks).view(drawn, len(x), -1)
        return logits.expand(draws, -1, -1)

    def answer(
        self,
        x: Tensor,
        y: Tensor,
        noise: NoiseStream,
        objective: Objective,
        draws: int = 1,
        gradient: GradientMode = "exact",
        anchor: Tensor | None = None,
    ) -> Answer:
        """The objective of ``x`` (B, C, H, W) and its gradient, over ``draws`` draws of the defence's noise.

        ``anchor`` is the clean images, for gradient modes that look at them.
        Where the objective is not a mean over draws, dL/dlogits is found first (a pass without a graph), then
        pulled back chunk by chunk.
        """
        draws, batch = self._draws(draws), len(x)
        seed = None
        if not objective.separable:
            logits = self.logits(x, noise, draws).requires_grad_()
            with torch.enable_grad():
                loss = objective(logits, y, {})
                (seed,) = torch.autograd.grad(loss.sum(), logits)
            seed = seed.flatten(0, 1)
        total, zero_rows = torch.zeros_like(x), x.new_zeros(batch)
        losses, chunks, first = [], [], 0
        for image, stream, used in self._chunks(batch, noise.repeat(draws)):
            leaf = x[image].detach().requires_grad_()
            with torch.enable_grad():
                judged = self._judge(leaf, stream, gradient, None if anchor is None else anchor[image])
                if seed is None:
                    row_loss = objective(judged.logits[None], y[image], judged.trace)[:used] / draws
                    scalar = row_loss.sum()
                    losses.append(row_loss.detach())
                else:
                    scalar = (judged.logits[:used] * seed[first : first + used]).sum()
            found = _gradient(scalar, leaf)
            chunks.append(judged.logits[:used].detach())
            _add_rows(total, found[:used], first)
            _add_rows(zero_rows, (found[:used].flatten(1) == 0).all(1).to(x.dtype), first)
            first += used
            del judged, scalar
        logits = torch.cat(chunks).view(draws, batch, -1)
        loss = objective(logits, y, {}) if seed is not None else _sum_draws(torch.cat(losses).view(draws, batch))
        return Answer(loss, total, logits, zero_rows / draws)

    def _judge(self, x: Tensor, noise: NoiseStream, gradient: GradientMode, anchor: Tensor | None) -> Judged:
        if gradient == "frozen":
            return self.defence(x, noise, gradient, anchor)
        return self.defence(x, noise, gradient)

    def _draws(self, draws: int) -> int:
        """A deterministic defence gives the same answer at every draw, so one is asked for."""
        return draws if self.defence.random else 1

    def _chunks(self, batch: int, noise: NoiseStream) -> Iterator[tuple[Tensor, NoiseStream, int]]:
        """(R,) image numbers, their R streams, and how many of them are not padding; draw by draw.

        A defence whose rows differ in cost gets many calls' worth of rows, and sees to the shape of its calls itself.
        """
        total = len(noise)
        if self._pieces is not None:
            for row in torch.arange(total, device=noise.index.device).split(self.rows * WORKING_SET):
                yield row % batch, noise.select(row), len(row)
            return
        for first in range(0, total, self.rows):
            row = torch.arange(first, first + self.rows, device=noise.index.device).clamp_max(total - 1)
            used = min(self.rows, total - first)
            self._used = used / self.rows
            yield row % batch, noise.select(row), used


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
