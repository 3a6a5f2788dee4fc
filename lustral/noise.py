"""Keyed random draws: every draw is a pure function of its name, so it never depends on the batch it came in.

A `NoiseStream` is a set of rows (one per image, or per image and EOT draw) and a path of names. The draws come
from the counter-based generator Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011), evaluated over the whole batch in integer arithmetic:

* the 64-bit key is a hash of (run seed, path, round, step): one Python integer a draw;
* the 128-bit counter is (block of four values, sample index, iteration, restart and draw); the high byte of a draw
  shares the iteration's word.

Within one key Philox is a bijection of the counter, so two rows can never share a block of values. No generator
state exists: recomputation in a backward pass replays the same noise by asking for it again, and image 7 sees
the same noise alone, in a batch, on another process or after a restart.
"""

import math
from dataclasses import dataclass, replace
from hashlib import blake2b

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_COLUMNS = ("iteration", "restart")
_RESTARTS, _ITERATIONS, DRAWS = 2**16, 2**24, 2**24
"""How many a stream tells apart. A draw's low 16 bits share a word with the restart, its high 8 one with the
iteration."""


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10 of int64 tensors that hold 32-bit words (broadcast against each other).

    A product of two 32-bit words overflows a signed 64-bit integer only into its sign, and wraps there, so its
    bit pattern is that of the unsigned product.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


@dataclass(frozen=True)
class NoiseStream:
    """Random draws for rows of samples, keyed by everything that may tell two draws apart.

    Args:
        seed: the run's seed.
        index: (B,) int64, each sample's position in the full data set split, in [0, 2**32).
        iteration: (B,) int64 in [0, 2**24), the attack's iteration; zeros if omitted.
        restart: (B,) int64 in [0, 2**16), the attack's restart; zeros if omitted.
        draw: (B,) int64 in [0, 2**24), the EOT or verdict draw; zeros if omitted.
        path: names that tell streams apart: ("verdict", "clean"), ("attack", "PGD"), ("forward",) ...
        round, step: where in a purification the draws belong, unless a draw says so itself.
        repeats: how many draws `repeat` has told apart so far; it does that count.
    """

    seed: int
    index: Tensor
    iteration: Tensor | None = None
    restart: Tensor | None = None
    draw: Tensor | None = None
    path: tuple[str, ...] = ()
    round: int = 0
    step: int = 0
    repeats: int = 1

    def __len__(self) -> int:
        return len(self.index)

    def fork(self, *names: str) -> "NoiseStream":
        """The same rows in another stream: independent of this one for every name."""
        return replace(self, path=self.path + names)

    def at(
        self,
        *,
        iteration: Tensor | int | None = None,
        restart: Tensor | int | None = None,
        round: int | None = None,
        step: int | None = None,
    ) -> "NoiseStream":
        """The same rows elsewhere; an integer iteration or restart holds for every row."""
        for name, value, end in (("restart", restart, _RESTARTS), ("iteration", iteration, _ITERATIONS)):
            if isinstance(value, int) and not 0 <= value < end:
                raise ValueError(f"The {name} {value} is asked for; a noise stream tells 0 to {end - 1} apart.")
        return replace(
            self,
            iteration=self.iteration if iteration is None else self._column(iteration),
            restart=self.restart if restart is None else self._column(restart),
            round=self.round if round is None else round,
            step=self.step if step is None else step,
        )

    def select(self, rows: Tensor) -> "NoiseStream":
        """The stream of some of the rows, in the order of ``rows`` ((n,) int64, or a (B,) mask)."""
        names = ("index", "iteration", "restart", "draw")
        columns = {name: None if (c := getattr(self, name)) is None else c[rows] for name in names}
        return replace(self, **columns)

    def repeat(self, draws: int, first: int = 0) -> "NoiseStream":
        """(draws * B,) rows, draw by draw: row ``d * B + b`` is draw ``first + d`` of row ``b``.

        Raises:
            ValueError: if there are more draws than a stream tells apart, or rows that are draws already (they count on
                within each of them) are to begin elsewhere than at 0.
        """
        repeats = (first + draws) * self.repeats
        if draws < 1 or first < 0 or repeats > DRAWS:
            within = f" within each of {self.repeats}" if self.repeats > 1 else ""
            raise ValueError(
                f"{draws} draws from {first} on are asked for{within}; a noise stream tells 1 to {DRAWS} of them apart."
            )
        if first and self.draw is not None:
            raise ValueError(f"The draws of a stream that is repeated already begin at 0, not at {first}.")
        number = torch.arange(first, first + draws, device=self.index.device).repeat_interleave(len(self))
        columns = {name: None if (c := getattr(self, name)) is None else c.repeat(draws) for name in _COLUMNS}
        before = 0 if self.draw is None else self.draw.repeat(draws) * draws
        return replace(self, index=self.index.repeat(draws), **columns, draw=before + number, repeats=repeats)

    def normal(
        self,
        shape: torch.Size | tuple[int, ...],
        round: int | None = None,
        step: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Standard normal draws of one ``shape`` a row: (B, *shape). By Box and Muller, in float64.

        Float64 makes the result the same on every device and at every place in a batch up to one rounding to
        ``dtype``: the last bits of a vectorised logarithm may differ between lanes, and are rounded away.
        """
        words = self._words(shape, round, step)
        radius = torch.sqrt(-2.0 * torch.log(_to_unit(words[..., 0::2])))
        angle = (2.0 * math.pi) * _to_unit(words[..., 1::2])
        values = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
        return self._shaped(values, shape, dtype)

    def uniform(
        self,
        shape: torch.Size | tuple[int, ...],
        round: int | None = None,
        step: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Uniform draws in [0, 1] (open in float64; float32 rounds) of one ``shape`` a row: (B, *shape)."""
        return self._shaped(_to_unit(self._words(shape, round, step)), shape, dtype)

    def _words(self, shape: torch.Size | tuple[int, ...], round: int | None, step: int | None) -> Tensor:
        """(B, blocks, 4) int64: enough 32-bit words for ``shape``."""
        round, step = self.round if round is None else round, self.step if step is None else step
        digest = blake2b(repr((self.seed, self.path, round, step)).encode(), digest_size=8).digest()
        key = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
        blocks = -(-math.prod(shape) // 4)
        zero = torch.zeros((), dtype=torch.int64, device=self.index.device)
        restart = zero if self.restart is None else self.restart
        draw = zero if self.draw is None else self.draw
        iteration = zero if self.iteration is None else self.iteration
        rows = (self.index, iteration | (draw >> 16 << 24), (restart << 16) | (draw & 0xFFFF))
        block = torch.arange(blocks, device=self.index.device)[None, :]
        index, iteration, number = (row.expand(len(self))[:, None] for row in rows)
        return torch.stack(torch.broadcast_tensors(*philox4x32((block, index, iteration, number), key)), dim=-1)

    def _shaped(self, values: Tensor, shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return values.flatten(1)[:, : math.prod(shape)].reshape(len(self), *shape).to(dtype)

    def _column(self, value: Tensor | int) -> Tensor:
        return value if isinstance(value, Tensor) else torch.full_like(self.index, value)


def _to_unit(words: Tensor) -> Tensor:
    """32-bit words as float64 at the midpoints of 2**32 equal cells of (0, 1)."""
    return (words.double() + 0.5) * 2.0**-32
