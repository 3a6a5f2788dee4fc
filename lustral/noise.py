"""Keyed random numbers: each is a pure function of its key, so none depends on the batch in which it is drawn.

A `NoiseStream` is a set of rows (one per image, or per image and EOT draw) and a path of names. The random numbers come
from the counter-based generator Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011), evaluated over the whole batch in integer arithmetic:

* the 64-bit key is a hash of (run seed, path, round, step), computed once per call;
* the 128-bit counter is (block of four values, sample index, iteration, restart and draw); the high byte of a draw
  shares the iteration's word.

For a fixed key, Philox is a bijection of the counter, so two different counters never give the same block of values.
There is no generator state: recomputation in a backward pass gets the same noise by requesting it again, and image 7
sees the same noise alone, in a batch, in another process or after a restart.
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
"""How many restarts, iterations and draws a stream tells apart. The low 16 bits of a draw share a counter word with the
restart, its high 8 bits share one with the iteration."""


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10 of int64 tensors that hold 32-bit words (broadcast against each other).

    The product of two 32-bit words has at most 64 bits; in a signed 64-bit integer it wraps around, and its bit pattern
    is that of the unsigned product.
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
    """Keyed random numbers for a batch of rows.

    Args:
        seed: the run's seed.
        index: (B,) int64, each sample's position in the full data set split, in [0, 2**32).
        iteration: (B,) int64 in [0, 2**24), the attack's iteration; zeros if omitted.
        restart: (B,) int64 in [0, 2**16), the attack's restart; zeros if omitted.
        draw: (B,) int64 in [0, 2**24), the EOT or verdict draw; zeros if omitted.
        path: names that tell streams apart: ("verdict", "clean"), ("attack", "PGD"), ("forward",) ...
        round, step: the default round and step of the purification; `normal` and `uniform` may be given others.
        repeats: how many draws per row `repeat` has made so far; set by `repeat`.
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
        """The same rows in another stream, with ``names`` added to its path; different paths give independent noise."""
        return replace(self, path=self.path + names)

    def at(
        self,
        *,
        iteration: Tensor | int | None = None,
        restart: Tensor | int | None = None,
        round: int | None = None,
        step: int | None = None,
    ) -> "NoiseStream":
        """The same rows at another iteration, restart, round or step; None keeps the present one.

        An integer iteration or restart holds for every row.

        Raises:
            ValueError: if an integer iteration is not in [0, 2**24), or an integer restart not in [0, 2**16).
        """
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
        """The stream of the selected ``rows``, in their order ((n,) int64, or a (B,) bool mask)."""
        names = ("index", "iteration", "restart", "draw")
        columns = {name: None if (c := getattr(self, name)) is None else c[rows] for name in names}
        return replace(self, **columns)

    def repeat(self, draws: int, first: int = 0) -> "NoiseStream":
        """(draws * B,) rows, draw by draw: row ``d * B + b`` is draw ``first + d`` of row ``b``.

        A stream that is already repeated is repeated within each of its draws.

        Raises:
            ValueError: if there are more draws than a stream tells apart, or ``first`` is not 0 in a stream that is
                already repeated.
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
        """Standard normal noise (B, *shape), of one ``shape`` per row; by the Box-Muller transform in float64.

        The last bits of a vectorised float64 logarithm may differ between devices and between places in a batch; the
        final rounding to ``dtype`` removes them.
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
        """Uniform noise (B, *shape), of one ``shape`` per row: in (0, 1) in float64, in [0, 1] once rounded."""
        return self._shaped(_to_unit(self._words(shape, round, step)), shape, dtype)

    def _words(self, shape: torch.Size | tuple[int, ...], round: int | None, step: int | None) -> Tensor:
        """(B, blocks, 4) int64: 32-bit random words, at least as many per row as ``shape`` has elements."""
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
    """32-bit words mapped to float64 in (0, 1), the midpoints of 2**32 equal cells."""
    return (words.double() + 0.5) * 2.0**-32
