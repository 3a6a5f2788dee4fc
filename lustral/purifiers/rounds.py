"""What all noise-and-denoise purifiers share: rounds of noising to a level and coming back."""

from abc import ABC
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lustral.diffusion import Denoiser, NoiseSchedule, Solver, from_diffusion, to_diffusion
from lustral.diffusion.schedules import coefficient
from lustral.noise import NoiseStream
from lustral.purifiers.base import Context, Purified, Purifier
from lustral.purifiers.slots import Layout, Slot, clock, own_grid, shared


class Round(NamedTuple):
    """Noising to ``t_star`` of 1000, and ``num_steps`` reverse steps."""

    t_star: float
    num_steps: int


class RoundPurifier(Purifier, ABC):
    """Noise the image to t*, bring it back, and again.

    Subclasses choose the rounds, the solver and what guides it. The levels of a round may differ by row (`SSNI`): they
    come in the context as "levels", (B, number of rounds).

    Attributes:
        denoiser: the diffusion model, frozen.
        solver: the reverse step.
        rounds: what is done, in order.
        noising: the schedule that noises; the denoiser's own, as a rule.
        layout: how rows of different levels walk (see `slots`).
        resize_to: the size in pixels at which the purifier works, if it is another than the images'.
        measures_deviation: whether the trace gets "deviation" (see `run`); set by whoever asks for it. The state that a
            step hands on is then twice as large, so nothing else should pay for it.
    """

    denoiser: Denoiser
    solver: Solver
    rounds: tuple[Round, ...]
    noising: NoiseSchedule
    layout: Layout = "clock"
    resize_to: int | None = None
    measures_deviation: bool = False

    def prepare_rounds(
        self, denoiser: Denoiser, solver: Solver, rounds: Sequence[tuple[float, int]], resize_to: int | None = None
    ) -> None:
        """Check and keep what every subclass has."""
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
        """``sigma``: standard deviation of the noise of the first round, at the image's scale in [-1, 1]; and
        ``network_calls``, of a purification at the full levels."""
        first = self.noised_at(self.grids[0][0])
        calls = sum(len(grid) - 1 for grid in self.grids)
        return {"sigma": round(float(self.noising.sigma(first)), 6), "network_calls": float(calls)}

    def noised_at(self, t: Tensor) -> Tensor:
        """The level to which a round that starts at ``t`` noises."""
        return t

    def follow(self, x: Tensor) -> tuple[Tensor, ...]:
        """What else of the input image ``x``, in diffusion space, the reverse steps look at."""
        return ()

    def reverse(
        self, key: int, x_t: Tensor, t: Tensor, s: Tensor, draws: tuple[Tensor, ...], *followed: Tensor
    ) -> Tensor:
        """x_s from x_t: one reverse step."""
        return self.solver.step(self.denoiser, x_t, t, s, draws[0])

    def draws(self, noise: NoiseStream, number: int, key: int, x: Tensor) -> tuple[Tensor, ...]:
        """The random numbers of one reverse step, rows as ``x``."""
        if not self.solver.random:
            return (torch.zeros_like(x),)
        return (noise.fork("reverse").normal(x.shape[1:], round=number, step=key, dtype=x.dtype),)

    def run(self, x: Tensor, context: Context, noise: NoiseStream) -> Purified:
        """Also, where it is asked for, "deviation" (B,): the squared distance, a pixel's mean, between the state after
        each reverse step and the round's image noised to the same level with the round's own noise; summed over the
        steps that a row takes, over the number of steps at the full levels. Differentiable."""
        state = to_diffusion(_resized(x, self.resize_to))
        followed, levels = self.follow(state), context.get("levels")
        trace: dict[str, Tensor] = {} if levels is None else {"levels": levels.detach()}
        for number in range(len(self.rounds)):
            at = None if levels is None else levels[:, number]
            noised = self._noise(state, number, at, noise)
            if number == 0:
                trace["noised"] = _resized(from_diffusion(noised).detach(), x.shape[-1])
            if self.measures_deviation:
                state, total = self._reverse_measured(noised, number, at, noise, followed, state)
                found = total.double().flatten(1).mean(1) / sum(len(grid) - 1 for grid in self.grids)
                trace["deviation"] = trace["deviation"] + found if number else found
            else:
                state = self._reverse(noised, number, at, noise, followed)
        return Purified(_resized(self.finish(from_diffusion(state)), x.shape[-1])[None], trace)

    def finish(self, x: Tensor) -> Tensor:
        """What is done to the purified image before it is classified. Most methods do nothing."""
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

    def _reverse(
        self, x: Tensor, number: int, levels: Tensor | None, noise: NoiseStream, followed: tuple[Tensor, ...]
    ) -> Tensor:
        slots = self._slots(number, levels)

        def step(i: int, state: Tensor, *inputs: Tensor) -> Tensor:
            return self._step(slots[i], number, state, noise, levels is not None, inputs)

        inputs = followed if levels is None else (levels, *followed)
        return self.unroll(step, len(slots), x, inputs)

    def _reverse_measured(
        self,
        x: Tensor,
        number: int,
        levels: Tensor | None,
        noise: NoiseStream,
        followed: tuple[Tensor, ...],
        origin: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The same, and the sum over the steps of the squared distance to ``origin`` noised to their ends, pixel by
        pixel: it travels in the state as a second set of channels."""
        slots, z = self._slots(number, levels), self._forward_noise(origin, number, noise)

        def step(i: int, state: Tensor, origin: Tensor, *inputs: Tensor) -> Tensor:
            slot, (image, total) = slots[i], state.chunk(2, dim=1)
            moved = self._step(slot, number, image, noise, levels is not None, inputs)
            rows = torch.arange(len(x), device=x.device) if slot.rows is None else slot.rows
            own = x.new_zeros(()) if levels is None else inputs[0][rows]
            target = self.denoiser.schedule.perturb(origin[rows], slot.times(own)[1], z[rows])
            total = total.index_copy(0, rows, total[rows] + (moved[rows] - target) ** 2)
            return torch.cat((moved, total), dim=1)

        inputs = (origin, *followed) if levels is None else (origin, levels, *followed)
        image, total = self.unroll(step, len(slots), torch.cat((x, torch.zeros_like(x)), dim=1), inputs).chunk(2, dim=1)
        return image, total

    def _step(
        self, slot: Slot, number: int, state: Tensor, noise: NoiseStream, ragged: bool, inputs: tuple[Tensor, ...]
    ) -> Tensor:
        """One slot's step of those rows that take it; ``inputs`` are the levels, if rows differ in them, and what is
        followed."""
        own, rest = (inputs[0], inputs[1:]) if ragged else (state.new_zeros(()), inputs)
        if slot.rows is None:
            return self._advance(slot, number, state, own, rest, noise)
        chosen = [tensor[slot.rows] for tensor in (state, own, *rest)]
        moved = self._advance(slot, number, chosen[0], chosen[1], tuple(chosen[2:]), noise.select(slot.rows))
        return state.index_copy(0, slot.rows, moved)

    def _advance(
        self, slot: Slot, number: int, x_t: Tensor, levels: Tensor, followed: tuple[Tensor, ...], noise: NoiseStream
    ) -> Tensor:
        t, s = slot.times(levels)
        draws = self.draws(noise, number, slot.key, x_t)
        count = len(draws)

        def call(x_t: Tensor, t: Tensor, s: Tensor, *tensors: Tensor) -> Tensor:
            return self.reverse(slot.key, x_t, t, s, tensors[:count], *tensors[count:])

        return self.pieces(call, x_t, t, s, *draws, *followed)


def _resized(x: Tensor, size: int | None) -> Tensor:
    """Bilinear, without antialiasing, as DiffPure does it; inside the graph that is attacked."""
    if size is None or size == x.shape[-1]:
        return x
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
