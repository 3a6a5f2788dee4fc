"""What all noise-and-denoise purifiers share: rounds of forward noising to a level and reverse steps back to 0."""

from abc import ABC
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lustral.diffusion import Context, Denoiser, NoiseSchedule, Solver, from_diffusion, to_diffusion
from lustral.diffusion.schedules import coefficient
from lustral.noise import NoiseStream
from lustral.purifiers.base import Purified, Purifier
from lustral.purifiers.guidance import Step
from lustral.purifiers.sizes import resized
from lustral.purifiers.slots import Layout, Slot, clock, own_grid, shared
from lustral.rows import selected


class Round(NamedTuple):
    """Noising to ``t_star``, in noising steps out of 1000, and ``num_steps`` reverse steps."""

    t_star: float
    num_steps: int


class RoundPurifier(Purifier, ABC):
    """Noise the image to t* and denoise it, in one or more rounds.

    Subclasses choose the rounds, the solver and the guidance. The levels of a round may differ by row (see `walk`).

    Attributes:
        denoiser: the diffusion model, frozen.
        solver: the reverse step.
        rounds: the rounds, in order.
        noising: the schedule of the forward noising, usually the denoiser's own.
        layout: how rows of different noise levels share steps (see `slots`).
        resize_to: the image side in pixels at which the purifier works; None is that of the images.
    """

    denoiser: Denoiser
    solver: Solver
    rounds: tuple[Round, ...]
    noising: NoiseSchedule
    layout: Layout = "clock"
    resize_to: int | None = None
    offers: Mapping[str, str] = {
        "noised": "the image noised to the level of the first round, in [0, 1], without a graph",
        "deviation": "(B,) how far the reverse process strays from the forward one (see `walk`), differentiable",
        "path": "(B, states, C, H, W) each round's noised image and what every step makes of it, in [0, 1], without a "
        "graph; takes the reverse steps a second time",
    }

    def prepare_rounds(
        self, denoiser: Denoiser, solver: Solver, rounds: Sequence[tuple[float, int]], resize_to: int | None = None
    ) -> None:
        """Check and store the arguments that all subclasses have, and compute the time grids.

        Raises:
            ValueError: if ``resize_to`` is not the denoiser's size, the solver cannot follow the denoiser's schedule,
                or there is no round or one out of range.
        """
        if resize_to is not None and resize_to != denoiser.image_shape[-1]:
            raise ValueError(f"resize_to is {resize_to}, but the denoiser works at {denoiser.image_shape[-1]} pixels.")
        self.resize_to = resize_to
        solver.check(denoiser)
        self.denoiser, self.solver = denoiser.eval().requires_grad_(False), solver
        self.rounds = tuple(Round(float(t), int(n)) for t, n in rounds)
        if not self.rounds:
            raise ValueError("A purifier needs at least one round (t_star, num_steps).")
        self.noising = denoiser.schedule
        self.grids = [self.grid(r) for r in self.rounds]

    def grid(self, of: Round) -> Tensor:
        """(num_steps + 1,) times of a round, descending."""
        return self.denoiser.schedule.grid(of.t_star, of.num_steps)

    def derived(self) -> dict[str, float]:
        """``sigma``, the standard deviation of the noise added in the first round, in diffusion space [-1, 1]; and
        ``network_calls``, the number of reverse steps of a purification with every round at its t*."""
        first = self.noised_at(self.grids[0][0])
        calls = sum(len(grid) - 1 for grid in self.grids)
        return {"sigma": round(float(self.noising.sigma(first)), 6), "network_calls": float(calls)}

    def noised_at(self, t: Tensor) -> Tensor:
        """The level to which the image is noised, in a round whose reverse process starts at ``t``."""
        return t

    def follow(self, x: Tensor) -> Context:
        """Context entries that the reverse steps take from the input image ``x`` (B, C, H, W) in diffusion space."""
        return {}

    def reverse(self, step: Step) -> Tensor:
        """x_s from x_t: one reverse step."""
        return self.solver.step(self.denoiser, step.x_t, step.t, step.s, self.drawn(step))

    def drawn(self, step: Step) -> Tensor:
        """The noise that the solver adds in ``step``, of the shape of x_t; zeros if the solver adds none."""
        if not self.solver.random:
            return torch.zeros_like(step.x_t)
        return step.noise.fork("reverse").normal(step.x_t.shape[1:], dtype=step.x_t.dtype)

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        return self.walk(x, None, noise, wants, context)

    def walk(
        self,
        x: Tensor,
        levels: Tensor | None,
        noise: NoiseStream,
        wants: Collection[str],
        context: Context | None = None,
    ) -> Purified:
        """Purify images ``x`` (B, C, H, W) in [0, 1], each at its own ``levels`` (B, number of rounds), which are in
        noising steps out of 1000 and differentiable; None takes each round's t_star. What ``context`` lacks of the
        entries in `holds` is prepared from ``x``; every step is given them.

        The trace entry "deviation" is the squared distance, averaged over pixels, between the state after a reverse
        step and the image at the start of the round, noised to the same level with the round's forward noise. It is
        summed over the steps that a row takes, and divided by the number of steps of all rounds at their t_star.
        """
        state = to_diffusion(resized(x, self.resize_to))
        held = self.complete(x, noise, dict(context or {}))
        followed = {**self.follow(state), **held}
        trace, path = {name: held[name] for name in wants if name in held}, list[Tensor]()
        for number in range(len(self.rounds)):
            at = None if levels is None else levels[:, number]
            noised = self._noise(state, number, at, noise)
            if "path" in wants:
                path += self._path(noised, number, at, noise, followed)
            if number == 0 and "noised" in wants:
                trace["noised"] = resized(from_diffusion(noised).detach(), x.shape[-1])
            if "deviation" in wants:
                state, total = self._reverse_measured(noised, number, at, noise, followed, state)
                found = total.double().flatten(1).mean(1) / sum(len(grid) - 1 for grid in self.grids)
                trace["deviation"] = trace["deviation"] + found if number else found
            else:
                state = self._reverse(noised, number, at, noise, followed)
        if path:
            trace["path"] = torch.stack([resized(from_diffusion(each), x.shape[-1]) for each in path], 1)
        return Purified(resized(self.finish(from_diffusion(state)), x.shape[-1])[None], trace)

    def finish(self, x: Tensor) -> Tensor:
        """Postprocess the purified image, in [0, 1] space, before it is classified; by default nothing is done."""
        return x

    def _noise(self, state: Tensor, number: int, levels: Tensor | None, noise: NoiseStream) -> Tensor:
        z = self._forward_noise(state, number, noise)
        if levels is None:
            return self.noising.perturb(state, self.noised_at(self.grids[number][0]), z)
        noised = self.noising.perturb(state, self.noised_at(levels), z)
        return torch.where(coefficient(levels, state) > 0, noised, state)

    def _forward_noise(self, state: Tensor, number: int, noise: NoiseStream) -> Tensor:
        return noise.fork("forward").normal(state.shape[1:], round=number, dtype=state.dtype)

    def _slots(self, number: int, levels: Tensor | None) -> list[Slot]:
        grid = self.grids[number]
        if levels is None:
            return shared(grid)
        if self.layout == "own":
            return own_grid(self.denoiser.schedule, len(grid) - 1, levels)
        return clock(grid, levels)

    def _reverse(self, x: Tensor, number: int, levels: Tensor | None, noise: NoiseStream, followed: Context) -> Tensor:
        slots, stream = self._slots(number, levels), noise.at(round=number)

        def step(i: int, state: Tensor, context: Context) -> Tensor:
            return self._step(slots[i], state, stream, context)

        return self.unroll(step, len(slots), x, followed if levels is None else {**followed, _LEVEL: levels})

    @torch.no_grad()
    def _path(
        self, x: Tensor, number: int, levels: Tensor | None, noise: NoiseStream, followed: Context
    ) -> list[Tensor]:
        """The states of `_reverse`, ``x`` first."""
        slots, stream = self._slots(number, levels), noise.at(round=number)
        context, states = followed if levels is None else {**followed, _LEVEL: levels}, [x.detach()]
        for slot in slots:
            states.append(self._step(slot, states[-1], stream, context))
        return states

    def _reverse_measured(
        self,
        x: Tensor,
        number: int,
        levels: Tensor | None,
        noise: NoiseStream,
        followed: Context,
        origin: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """`_reverse`, and the squared distance of each pixel to ``origin`` noised to the end of the step, summed over
        the steps."""
        slots, stream = self._slots(number, levels), noise.at(round=number)
        z = self._forward_noise(origin, number, noise)

        def step(i: int, state: dict[str, Tensor], context: Context) -> dict[str, Tensor]:
            slot, total = slots[i], state["total"]
            origin, context = context[_ORIGIN], {k: v for k, v in context.items() if k != _ORIGIN}
            moved = self._step(slot, state["image"], stream, context)
            rows = torch.arange(len(moved), device=moved.device) if slot.rows is None else slot.rows
            end = slot.times(_levels(context, rows, moved))[1]
            target = self.denoiser.schedule.perturb(origin[rows], end, z[rows])
            return {"image": moved, "total": total.index_copy(0, rows, total[rows] + (moved[rows] - target) ** 2)}

        context = {**followed, _ORIGIN: origin} | ({} if levels is None else {_LEVEL: levels})
        found = self.unroll(step, len(slots), {"image": x, "total": torch.zeros_like(x)}, context)
        return found["image"], found["total"]

    def _step(self, slot: Slot, state: Tensor, noise: NoiseStream, context: Context) -> Tensor:
        """One slot's reverse step, on the rows that take it; the others keep their state."""
        given: tuple[Any, ...] = (state, noise.at(step=slot.key), context)
        x_t, stream, own = given if slot.rows is None else selected(given, slot.rows)
        t, s = slot.times(own.get(_LEVEL, state.new_zeros(())))
        moved = self.rows(self.reverse, Step(x_t, t, s, slot.key, stream, own))
        return moved if slot.rows is None else state.index_copy(0, slot.rows, moved)


_LEVEL, _ORIGIN = "own level", "origin of the round"


def _levels(context: Context, rows: Tensor, like: Tensor) -> Tensor:
    return context[_LEVEL][rows] if _LEVEL in context else like.new_zeros(())
