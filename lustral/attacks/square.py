"""Square: random search with square-shaped changes (Andriushchenko et al. 2020, arXiv 1912.00049)."""

import math
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lustral.attacks.base import Attack
from lustral.attacks.engine import Engine
from lustral.attacks.objectives import Margin, Objective
from lustral.attacks.selection import score, select
from lustral.attacks.victim import Cases, group_sum, whole_groups
from lustral.noise import NoiseStream
from lustral.threat import ThreatModel
from lustral.votes import strictly_right

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # iterations out of 10,000 after which p is halved
_COMPACT_EVERY = 5  # iterations between removals of decided cases: finding them synchronises with the device


class Square(Attack):
    """Proposes a change of one random square per iteration, and keeps it if the loss rises. It takes no gradients.

    linf: the search begins with vertical stripes of +-eps; a proposal sets a square of the perturbation to +-eps, one
    sign per channel. l2: it begins with a grid of tiles, each a pair of opposite bumps (eq. 2 of the paper); a proposal
    clears two windows of the perturbation, and puts their share of the budget, and the part of the budget that clipping
    left unused, into a pair of bumps in the first window (Algorithm 3). A square covers a share p of the image's
    pixels, which is halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 iterations (the paper's text has no
    500). These are of 10,000 and scaled in proportion to other numbers, as in the authors' own code (``schedule:
    proportional``), or taken as they are, as in AutoAttack (``resc_schedule=False``; here ``absolute``): its 5000
    queries end with p_init / 128, not p_init / 512.

    On a deterministic defence, the loss of the incumbent (the best point so far) is computed once, and a case is
    finished when it is broken. On a random defence, the best of many losses would be that of the luckiest draws, which
    no later proposal could beat. So there every iteration queries the proposal and the incumbent on the same fresh
    draws: chance favours neither, and the incumbent keeps no advantage from earlier draws. This costs two queries per
    iteration, and no single query decides a case. Selection draws then compare the last incumbent of each restart and
    the earlier incumbents of highest mean loss, over the queries made while they were incumbents (the query in which
    they were accepted does not count).

    Statistics: "queries" (images queried; draws of EOT and queries for selection are not counted), "accepted"
    (proposals kept), "loss_first" (of the first starting point) and "loss_last" (of the last incumbent, in its latest
    query).

    Args:
        num_queries: iterations per restart; the first one queries the starting point.
        p_init: the share of the image's pixels that the first squares cover, in (0, 1].
        restarts: independent runs.
        eot: draws of the defence's noise that a query's loss is averaged over.
        objective: the loss to be raised; Margin if none is named. It must take logits alone.
        finalists: earlier incumbents per image that are scored again on selection draws (random defences only).
        selection_draws: draws on which these are scored. Neither the search nor the verdict sees them.
        schedule: whether the iterations at which squares shrink are "proportional" to ``num_queries`` or "absolute".

    Raises:
        ValueError: if an option is out of its range, or the objective takes more than logits.
    """

    def __init__(
        self,
        num_queries: int = 5000,
        p_init: float = 0.8,
        restarts: int = 1,
        eot: int = 1,
        objective: Objective | None = None,
        finalists: int = 3,
        selection_draws: int = 16,
        schedule: Literal["proportional", "absolute"] = "proportional",
    ) -> None:
        counts = {"num_queries": num_queries, "restarts": restarts, "eot": eot, "finalists": finalists}
        for name, value in (counts | {"selection_draws": selection_draws}).items():
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        if not 0 < p_init <= 1:
            raise ValueError(f"p_init is {p_init}; it is a share of the image, above 0 and at most 1.")
        if schedule not in ("proportional", "absolute"):
            raise ValueError(f"schedule is {schedule!r}; it may be proportional or absolute.")
        self.schedule: Literal["proportional", "absolute"] = schedule
        self.num_queries, self.p_init, self.restarts, self.eot = num_queries, p_init, restarts, eot
        self.objective = objective or Margin()
        self.finalists, self.selection_draws = finalists, selection_draws
        if more := (*self.objective.needs, *self.objective.expects):
            raise ValueError(
                f"{type(self.objective).__name__} takes the {', '.join(more)} as well, but "
                "Square sees logits alone: choose an attack.objective of logits, such as Margin."
            )

    @property
    def target(self) -> str:
        return self.objective.target

    def score(self, logits: Tensor, y: Tensor) -> Tensor:
        return score(self.objective, logits, y)

    def share(self, iteration: int) -> float:
        """p, the share of the image's pixels that a square covers at ``iteration``."""
        passed = iteration if self.schedule == "absolute" else iteration * 10_000 // self.num_queries
        return self.p_init / 2 ** sum(passed > halving for halving in _HALVINGS)

    @property
    def measures(self) -> tuple[str, ...]:
        return ("queries", "accepted", "loss_first", "loss_last")

    def run(
        self, engine: Engine, cases: Cases, threat: ThreatModel, noise: NoiseStream
    ) -> tuple[Tensor, dict[str, Tensor]]:
        found = _Found(cases, self.finalists, engine.group_size)
        if threat.budget == 0:
            return cases.images.clone(), found.statistics()
        for restart in range(self.restarts):
            self._search(engine, cases, threat, noise.at(restart=restart), restart, found)
        candidates = [*found.earlier, *found.last] if engine.defence.random else found.last
        chosen = select(engine, candidates, cases, noise.fork("selection"), self.selection_draws, self.score)
        found.bad |= chosen.failed
        return torch.where(_pixels(found.decided), found.broken, chosen.images), found.statistics()

    def _search(
        self, engine: Engine, cases: Cases, threat: ThreatModel, noise: NoiseStream, restart: int, found: "_Found"
    ) -> None:
        """Run one restart on the cases that are not decided yet."""
        start, propose = (_stripes, _square) if threat.norm == "linf" else (_tiles, _moved_bumps)
        x, random = cases.images, engine.defence.random
        incumbent = cases.confined(threat.project(start(x, threat.budget, noise.fork("start")), x))
        found.begin(incumbent)
        rows = torch.arange(len(cases), device=x.device)
        for k in range(self.num_queries):
            if not random and k % _COMPACT_EVERY == 0:
                rows = (~found.decided).nonzero().flatten()
                if len(rows) == 0:
                    break
            old, stream = incumbent[rows], noise.at(iteration=k).select(rows)
            queries = [old]
            if k > 0:
                moved = propose(x[rows], old, self.share(k), threat.budget, stream.fork("proposal"))
                new = cases.select(rows).confined(threat.project(moved, x[rows]))
                queries = [old, new] if random else [new]
            logits = self._judge(engine, queries, stream.fork("query"))
            losses = [found.total(rows, self.objective(each, cases.labels[rows])) for each in logits]
            if random or k == 0:
                found.look(rows, losses[0])
            better = losses[-1] > found.loss[rows]
            incumbent[rows] = torch.where(_pixels(better), queries[-1], old)
            found.answer(rows, queries, logits, cases.labels[rows], not random)
            found.replace(rows, better, old, losses[-1])
            engine.observe(self.name, restart * self.num_queries + k + 1, self.restarts * self.num_queries)

    def _judge(self, engine: Engine, queries: list[Tensor], noise: NoiseStream) -> list[Tensor]:
        """(eot, B, K) logits of each of ``queries``, all on the same draws."""
        same = torch.arange(len(noise), device=noise.index.device).repeat(len(queries))
        return list(engine.logits(torch.cat(queries), noise.select(same), self.eot).chunk(len(queries), dim=1))


class _Found:
    """What the search remembers of every case.

    Attributes:
        decided: (B,) cases that a deterministic defence misclassified.
        broken: (B, C, H, W) the images that it misclassified.
        bad: (B,) cases that met NaN or Inf.
        last: the incumbents of each restart, (B, C, H, W); the search changes them in place.
        earlier: (finalists, B, C, H, W) former incumbents of highest mean loss.
        loss: (B,) float64 loss of the incumbent, in its latest query.
    """

    def __init__(self, cases: Cases, finalists: int, group_size: int) -> None:
        images, self._aim, self._group_size = cases.images, cases.aim, group_size
        zero = images.new_zeros(len(images), dtype=torch.float64)
        self.decided = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.bad, self.broken = self.decided.clone(), images.clone()
        self.last: list[Tensor] = []
        self.earlier, self._means = images[:0], zero.new_full((finalists, len(images)), -torch.inf)
        self.loss, self._sum, self._looks = zero.clone(), zero.clone(), zero.clone()
        self._first, self._queries, self._accepted = zero.clone(), zero.clone(), zero.clone()

    def total(self, rows: Tensor, losses: Tensor) -> Tensor:
        """(n,) float64 losses of the cases ``rows``, summed over groups."""
        return group_sum(losses.double().nan_to_num(-torch.inf), self._group_size, self._aimed(rows))

    def _aimed(self, rows: Tensor) -> Tensor | None:
        return None if self._aim is None else self._aim[rows]

    def begin(self, incumbent: Tensor) -> None:
        """Begin a restart at ``incumbent`` (B, C, H, W)."""
        if not self.last:
            self.earlier = incumbent.repeat(len(self._means), 1, 1, 1, 1)
        self.last.append(incumbent)
        self._sum.zero_()
        self._looks.zero_()

    def look(self, rows: Tensor, loss: Tensor) -> None:
        """Record the incumbents' ``loss`` on fresh draws."""
        self.loss[rows] = loss
        self._sum[rows] += loss
        self._looks[rows] += 1
        if len(self.last) == 1:
            self._first[rows] = torch.where(self._queries[rows] == 0, loss, self._first[rows])

    def answer(self, rows: Tensor, queries: list[Tensor], logits: list[Tensor], y: Tensor, decides: bool) -> None:
        """Record ``queries`` and the logits (eot, B, K) of each. If one query ``decides`` (deterministic defences),
        the misclassified cases are finished."""
        still = ~self.decided[rows]
        self._queries[rows] += len(queries) * still
        for each in logits:
            self.bad[rows] |= ~each.isfinite().all(-1).all(0)
        if decides:
            wrong = whole_groups(~strictly_right(logits[-1][0], y), self._group_size, self._aimed(rows))
            broken = wrong & still
            self.broken[rows] = torch.where(_pixels(broken), queries[-1], self.broken[rows])
            self.decided[rows] |= broken

    def replace(self, rows: Tensor, better: Tensor, old: Tensor, loss: Tensor) -> None:
        """Where ``better``, a proposal of this ``loss`` replaces the incumbent ``old``, which is kept in `earlier` if
        its mean loss is high enough."""
        mean = (self._sum[rows] / self._looks[rows]).masked_fill(~better, -torch.inf)
        slot = self._means[:, rows].argmin(0)
        enters = mean > self._means[slot, rows]
        self.earlier[slot, rows] = torch.where(_pixels(enters), old, self.earlier[slot, rows])
        self._means[slot, rows] = torch.where(enters, mean, self._means[slot, rows])
        self.loss[rows] = torch.where(better, loss, self.loss[rows])
        self._sum[rows] *= ~better
        self._looks[rows] *= ~better
        self._accepted[rows] += better

    def statistics(self) -> dict[str, Tensor]:
        """The statistics, (B,) each: NaN for every case that met NaN or Inf, which `Attack` then counts as failed."""
        found = {
            "queries": self._queries,
            "accepted": self._accepted,
            "loss_first": self._first,
            "loss_last": self.loss,
        }
        return {name: values.masked_fill(self.bad, torch.nan).float() for name, values in found.items()}


# What is proposed ------------------------------------------------------------


def _pixels(rows: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1)."""
    return rows[:, None, None, None]


def _signs(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0)


def _window(place: Tensor, side: int, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    """A square window of ``side`` pixels in images of ``shape`` (..., H, W), placed by ``place`` (B, 2) in [0, 1].

    Returns which pixels are inside, (B, 1, H, W) bool, and each pixel's row (B, H) and column (B, W) relative to the
    window, clamped to it.
    """
    height, width = shape[-2:]
    offsets, inside = [], []
    for size, where in ((height, place[:, 0]), (width, place[:, 1])):
        first = (where * (size - side + 1)).long().clamp_max(size - side)
        offset = torch.arange(size, device=place.device) - first[:, None]
        inside.append((offset >= 0) & (offset < side))
        offsets.append(offset.clamp(0, side - 1))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None], offsets[0], offsets[1]


def _side(share: float, shape: torch.Size, smallest: int = 1) -> int:
    """The side of a square that covers about ``share`` of an image of ``shape`` (..., H, W)."""
    height, width = shape[-2:]
    return min(max(round(math.sqrt(share * height * width)), smallest), height, width)


def _stripes(x: Tensor, eps: float, noise: NoiseStream) -> Tensor:
    """linf: every column of every channel is moved by +-eps."""
    return x + eps * _signs(noise.uniform((x.shape[1], 1, x.shape[3]))).to(x.dtype)


def _square(x: Tensor, incumbent: Tensor, share: float, eps: float, noise: NoiseStream) -> Tensor:
    """linf: a square whose perturbation is +-eps, one sign per channel (Algorithm 2)."""
    uniform = noise.uniform((2 + x.shape[1],), dtype=torch.float64)
    inside, _, _ = _window(uniform[:, :2], _side(share, x.shape), x.shape)
    return torch.where(inside, x + eps * _signs(uniform[:, 2:, None, None]).to(x.dtype), incumbent)


def _tiles(x: Tensor, eps: float, noise: NoiseStream) -> Tensor:
    """l2: as many tiles as fit, each a fifth of the image's side with a pair of bumps; the total norm is eps."""
    channels, height, width = x.shape[1:]
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    uniform = noise.uniform((channels + 1, down, across)).repeat_interleave(side, 2).repeat_interleave(side, 3)
    bumps = _bumps(side, x.device)
    tiles = torch.where(uniform[:, :1] < 0.5, bumps.T.repeat(down, across), bumps.repeat(down, across))
    tiles = tiles * _signs(uniform[:, 1:]) * (eps / math.sqrt(channels * down * across))
    top, left = (height - side * down) // 2, (width - side * across) // 2
    spare = (left, width - side * across - left, top, height - side * down - top)
    return x + F.pad(tiles, spare).to(x.dtype)


def _moved_bumps(x: Tensor, incumbent: Tensor, share: float, eps: float, noise: NoiseStream) -> Tensor:
    """l2: the budget of two windows is moved into the first (Algorithm 3), in float64 to keep the norm at eps."""
    side = _side(share, x.shape, smallest=3)
    if side % 2 == 0:  # the paper's windows are odd
        side += 1 if side < min(x.shape[2:]) else -1
    uniform = noise.uniform((5 + x.shape[1],), dtype=torch.float64)
    first, row, column = _window(uniform[:, 0:2], side, x.shape)
    both = first | _window(uniform[:, 2:4], side, x.shape)[0]
    bumps = _bumps(side, x.device)
    upright, lying = (each[row[:, :, None], column[:, None, :]][:, None] for each in (bumps, bumps.T))
    fresh = torch.where(_pixels(uniform[:, 4] < 0.5), lying, upright) * _signs(uniform[:, 5:, None, None]) * first

    delta = (incumbent - x).double()
    held = delta * first
    mixed = fresh + held / _channel_norm(held).clamp_min(torch.finfo(torch.float64).tiny)
    unused = (eps**2 - delta.square().sum((1, 2, 3), keepdim=True)).clamp_min(0.0) / x.shape[1]
    available = (_channel_norm(delta * both).square() + unused).sqrt()
    mixed = mixed * (available / _channel_norm(mixed).clamp_min(torch.finfo(torch.float64).tiny))
    return (x + torch.where(both, mixed, delta)).to(x.dtype)


def _channel_norm(delta: Tensor) -> Tensor:
    """(B, C, 1, 1) Euclidean norm of each channel."""
    return delta.square().sum((2, 3), keepdim=True).sqrt()


@lru_cache(maxsize=64)
def _bumps(side: int, device: torch.device) -> Tensor:
    """(side, side) float64 of norm 1: a bump in the left half, and a negative one in the right (eq. 2 of the paper)."""
    half = side // 2
    pair = torch.cat((_bump(side, half, device), -_bump(side, side - half, device)), dim=1)
    return pair / pair.norm()


def _bump(height: int, width: int, device: torch.device) -> Tensor:
    """(height, width) values that grow towards the centre, by 1 / m^2 from ring to ring; ``width`` may be 0."""
    centre, across = height // 2, width // 2
    rings = torch.arange(1, centre + 2, device=device, dtype=torch.float64).reciprocal().square()
    sums = rings.flip(0).cumsum(0).flip(0)  # of 1 / m^2 for m from d + 1 to n + 1, at distance d
    rows, columns = (torch.arange(size, device=device) for size in (height, width))
    return sums[torch.maximum((rows - centre).abs()[:, None], (columns - across).abs()[None, :])]
