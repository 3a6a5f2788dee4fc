"""FAB, the targeted fast adaptive boundary attack (Croce and Hein 2020, arXiv 1907.02044)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lustral.attacks.engine import Answer, Engine
from lustral.attacks.first_order import GradientAttack, Held, State, likeliest_wrong_classes
from lustral.attacks.leaderboard import GradientStatistics
from lustral.attacks.objectives import TARGET, TargetMargin, margin, mean_over_draws
from lustral.attacks.selection import select
from lustral.attacks.victim import Cases, whole_groups
from lustral.noise import NoiseStream
from lustral.purifiers import GradientMode, Purifier, Variant
from lustral.threat import ThreatModel

_SEARCHES = 3  # steps of the final search
_BEYOND = 1e-4  # relative overshoot of the final search: rounding must not move a point back across the boundary


class FAB(GradientAttack):
    """Searches for the smallest perturbation that crosses the boundary to one of the most likely wrong classes.

    At the iterate x_k, the boundary to the target class is approximated by the hyperplane where the linearised
    (target - true logit) is 0. With d_k the shortest step from x_k to this plane within the box (`to_hyperplane`), and
    d_0 the shortest step from the clean image x to it,

        x_{k+1} = (1 - alpha) (x_k + eta d_k) + alpha (x + eta d_0),   alpha = min(|d_k| / (|d_k| + |d_0|), alpha_max),

    clipped to the box. If x_{k+1} is misclassified, as whatever class, it is kept if it is the nearest such point so
    far, and the search goes on from x + beta (x_{k+1} - x). A target costs ``num_steps`` gradients and as many forward
    passes. The nearest misclassified point of all targets is then moved towards the image by 3 secant steps (the
    paper's final search).

    Norm and budget are the threat model's; the budget plays no part in the search. The nearest misclassified point is
    returned if it is within the budget, and projected onto the budget if not; an image without such a point gets the
    iterate of highest margin, projected. As the norm is what is minimised, an image is not finished when it is broken;
    but images that a deterministic defence misclassifies without a perturbation are returned unchanged.

    **Random defences** have no fixed decision boundary. FAB approaches the boundary of the logits averaged over ``eot``
    draws, fresh ones at each step. A point on it is misclassified in about half of all draws, so a small norm has no
    value there. Each target's point is therefore scaled to the whole budget, and the most harmful of them on selection
    draws is returned. PGD and APGD, which raise a loss directly, are the better attacks on random defences.

    Args:
        num_steps: steps per target.
        num_targets: targets per image, the wrong classes with the largest logits of the clean image; at most the number
            of classes minus one.
        alpha_max: the largest weight of the step that begins at the clean image, in [0, 1].
        eta: length of a step, in units of the distance to the plane; at least 1.
        beta: the share of the perturbation that is kept after a misclassification, in (0, 1).
        eot: draws of the defence's noise that logits and gradients are averaged over.
        gradient: "exact", "bpda" or "detached".
        selection_draws: draws on which a random defence's candidates are compared.
        surrogate: what is differentiated in place of the defence's purifier, a `Variant` of it or another purifier;
            None differentiates the defence (see `GradientAttack`).
        context: "own", or "clean" to hand the purifier the context of the clean image (see `GradientAttack`).

    Raises:
        ValueError: if an option is out of its range, the classifier has too few classes, or the defence judges groups.
    """

    gives = (TARGET,)

    def __init__(
        self,
        num_steps: int = 100,
        num_targets: int = 9,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        eot: int = 1,
        gradient: GradientMode = "exact",
        selection_draws: int = 16,
        surrogate: None | Variant | Purifier = None,
        context: Held = "own",
    ) -> None:
        for name, value, allowed, words in (
            ("num_steps", num_steps, num_steps >= 1, "at least 1"),
            ("num_targets", num_targets, num_targets >= 1, "at least 1"),
            ("alpha_max", alpha_max, 0 <= alpha_max <= 1, "between 0 and 1"),
            ("eta", eta, 1 <= eta < float("inf"), "at least 1, and finite"),
            ("beta", beta, 0 < beta < 1, "above 0 and below 1"),
        ):
            if not allowed:
                raise ValueError(f"{name} is {value}; it must be {words}.")
        super().__init__(eot, TargetMargin(), gradient, selection_draws, surrogate, context, ())
        self.num_steps, self.num_targets = num_steps, num_targets
        self.alpha_max, self.eta, self.beta = alpha_max, eta, beta

    def update(self, state: State, answer: Answer) -> State:
        """The state at x_{k+1}, before the backward step with ``beta``."""
        x, query = (images.flatten(1).double() for images in (state.x, state.query))
        w, lack = answer.gradient.flatten(1).double(), -answer.loss.double()
        from_query = to_hyperplane(query, w, lack, state.threat)
        from_x = to_hyperplane(x, w, lack + (w * (query - x)).sum(1), state.threat)
        near, far = _length(from_query, state.threat), _length(from_x, state.threat)
        alpha = (near / (near + far).clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(self.alpha_max)[:, None]
        moved = (1 - alpha) * (query + self.eta * from_query) + alpha * (x + self.eta * from_x)
        return replace(state, query=moved.to(state.x.dtype).clamp(*state.threat.bounds).view_as(state.x))

    def run(
        self, engine: Engine, cases: Cases, threat: ThreatModel, noise: NoiseStream
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if engine.group_size > 1:
            raise ValueError(
                f"FAB looks for the nearest point of each image by itself, and this defence judges {engine.group_size} "
                "images together: choose APGD or PGD, which raise the loss of whole groups."
            )
        statistics, x, y = GradientStatistics(cases.images), cases.images, cases.labels
        if threat.budget == 0:
            return x.clone(), statistics.result()
        random = engine.defence.random
        targets = likeliest_wrong_classes(engine, cases, noise.fork("targets"), self.eot, self.num_targets)
        source = self.source(engine)
        clean = torch.zeros_like(x[:, 0, 0, 0]) if random else self._margin(engine, x, y, noise.fork("clean"))
        rows = (~whole_groups(clean > 0, 1, cases.aim)).nonzero().flatten()
        if len(rows) == 0:
            return x.clone(), statistics.result()
        every, cases = cases, cases.select(rows)
        found: list[_Nearest] = []
        for number in range(self.num_targets):
            stream = noise.at(restart=number).select(rows)
            found.append(
                self._walk(engine, source, cases, threat, stream, targets[number, rows], rows, number, statistics)
            )
        if random:
            candidates = [threat.project(_scaled(each.image, x, threat), x) for each in found]
            chosen = select(engine, candidates, every, noise.fork("selection"), self.selection_draws, self.score)
            statistics.mark(chosen.failed)
            return chosen.images, statistics.result()
        nearest = found[0]
        for each in found[1:]:
            nearest = nearest.or_nearer(each)
        image = self._search(engine, cases, nearest, clean[rows], noise.fork("search").select(rows))
        return x.index_copy(0, rows, image), statistics.result()

    def _walk(
        self,
        engine: Engine,
        source: Engine,
        cases: Cases,
        threat: ThreatModel,
        noise: NoiseStream,
        target: Tensor,
        rows: Tensor,
        number: int,
        statistics: GradientStatistics,
    ) -> "_Nearest":
        """The nearest misclassified point found on the way to ``target`` (B,), for the cases ``rows``; ``number`` is
        the target's number."""
        state = State(cases.images, cases.images, cases.labels, threat, given={TARGET: target})
        nearest = _Nearest.of(state.x, state.x, torch.full_like(state.x[:, 0, 0, 0], -torch.inf), threat)
        for k in range(self.num_steps):
            stream = noise.fork("gradient").at(iteration=k)
            held = state.x if self.context == "clean" else None
            answer = source.answer(
                state.query,
                state.y,
                stream,
                self.objective,
                self.eot,
                self.gradient,
                clean=held,
                given=state.given,
                aim=cases.aim,
            )
            statistics.check(rows, answer)
            after = self.update(state, answer)
            after = replace(after, query=cases.confined(after.query))
            found = self._margin(engine, after.query, state.y, noise.fork("boundary").at(iteration=k))
            nearest = nearest.or_nearer(_Nearest.of(after.query, state.x, found, threat))
            back = state.x + self.beta * (after.query - state.x)
            query = _pick(found > 0, back, after.query)
            if number == 0:
                statistics.record(rows, state.query, answer, query)
            state = replace(after, query=query)
            engine.observe(self.name, number * self.num_steps + k + 1, self.num_targets * self.num_steps)
        return nearest

    def _search(self, engine: Engine, cases: Cases, nearest: "_Nearest", clean: Tensor, noise: NoiseStream) -> Tensor:
        """The final search: the misclassified points of ``nearest``, moved towards the image along the segment between
        them, to the root of the secant through the margins at its ends and slightly beyond it."""
        x, whole = cases.images, nearest.image - cases.images
        low, high = torch.zeros_like(clean), torch.ones_like(clean)  # shares of the segment
        low_margin, high_margin, image = clean, nearest.margin, nearest.image
        for k in range(_SEARCHES):
            zero = (low_margin / (low_margin - high_margin)).nan_to_num(1.0).clamp(0.0, 1.0)
            share = torch.minimum((low + zero * (high - low)) * (1.0 + _BEYOND), high)
            point = torch.where((share < high)[:, None, None, None], x + share[:, None, None, None] * whole, image)
            found = self._margin(engine, point, cases.labels, noise.at(iteration=k))
            across = found > 0
            low, low_margin = torch.where(across, low, share), torch.where(across, low_margin, found)
            high, high_margin = torch.where(across, share, high), torch.where(across, found, high_margin)
            image = _pick(across & nearest.norm.isfinite(), point, image)
        return image

    def _margin(self, engine: Engine, x: Tensor, y: Tensor, noise: NoiseStream) -> Tensor:
        """(B,) margins of the defence's logits, mean over draws; positive where ``x`` is misclassified."""
        return mean_over_draws(margin(engine.logits(x, noise, self.eot), y))


@dataclass(frozen=True)
class _Nearest:
    """``image`` (B, C, H, W), its ``margin`` (B,), and the ``norm`` (B,) of its perturbation: inf if it is classified
    correctly."""

    image: Tensor
    norm: Tensor
    margin: Tensor

    @classmethod
    def of(cls, image: Tensor, x: Tensor, margin: Tensor, threat: ThreatModel) -> "_Nearest":
        return cls(image, threat.distance(image, x).masked_fill(~(margin > 0), torch.inf), margin)

    def or_nearer(self, other: "_Nearest") -> "_Nearest":
        """For each row the point of smaller norm; if neither is misclassified, the one of higher margin."""
        neither = self.norm.isinf() & other.norm.isinf()
        better = (other.norm < self.norm) | (neither & (other.margin > self.margin))
        return _Nearest(
            _pick(better, other.image, self.image),
            torch.where(better, other.norm, self.norm),
            torch.where(better, other.margin, self.margin),
        )


def to_hyperplane(x: Tensor, w: Tensor, lack: Tensor, threat: ThreatModel) -> Tensor:
    """The shortest step (B, n) in the threat's norm with <w, step> = lack and x + step in the box, for ``x`` and ``w``
    (B, n) and ``lack`` (B,), all float64. Where the plane does not meet the box, the step to the corner nearest to it.

    Every pixel moves in the direction sign(w lack), by min(t, room) for linf and min(t |w|, room) for l2, where room is
    its distance to the box's edge in that direction. So |<w, step>| = sum_i a_i min(t, c_i), with a = |w| and c = room
    for linf, a = w^2 and c = room / |w| for l2; `_level` solves this for t.
    """
    direction = w.sign() * lack.sign()[:, None]
    room = torch.where(direction > 0, threat.bounds[1] - x, x - threat.bounds[0]).clamp_min(0.0)
    speed = torch.ones_like(w) if threat.norm == "linf" else w.abs()
    ceiling = torch.where(w == 0, 0.0, room / torch.where(w == 0, 1.0, speed))
    level = _level(w.abs() * speed, ceiling, lack.abs())
    return direction * speed * torch.minimum(level[:, None], ceiling)


def _level(rate: Tensor, ceiling: Tensor, total: Tensor) -> Tensor:
    """(B,) the t at which sum_i rate_i min(t, ceiling_i) equals ``total`` (B,); inf where there is none.

    ``rate`` and ``ceiling`` are (B, n) and not negative. The sum is concave and piecewise linear in t: with ceilings in
    ascending order and t above the first k of them, it is sum_{i<k} rate_i ceiling_i + t sum_{i>=k} rate_i.
    """
    ceiling, order = ceiling.sort(dim=1)
    rate = rate.gather(1, order)
    left = rate.flip(1).cumsum(1).flip(1)  # sum_{i>=k} rate_i; total minus sum_{i<k} would suffer cancellation
    full = (rate * ceiling).cumsum(1)
    before = torch.cat((torch.zeros_like(full[:, :1]), full[:, :-1]), dim=1)
    k = (before + ceiling * left < total[:, None]).sum(1, keepdim=True)  # how many ceilings lie below t
    reached, k = k[:, 0] < rate.shape[1], k.clamp_max(rate.shape[1] - 1)
    slope = left.gather(1, k)[:, 0]
    level = (total - before.gather(1, k)[:, 0]) / slope.clamp_min(torch.finfo(slope.dtype).tiny)
    return torch.where(reached, level.clamp_min(0.0), torch.inf)


def _length(delta: Tensor, threat: ThreatModel) -> Tensor:
    """(B,) norms of perturbations (B, n), in the threat's norm."""
    return delta.abs().amax(1) if threat.norm == "linf" else delta.norm(dim=1)


def _scaled(image: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """``image`` (B, C, H, W) with its perturbation of ``x`` scaled up to the whole budget; a perturbation beyond the
    budget is unchanged."""
    norm = threat.distance(image, x).clamp_min(torch.finfo(x.dtype).tiny)
    return x + (threat.budget / norm).clamp_min(1.0)[:, None, None, None] * (image - x)


def _pick(rows: Tensor, those: Tensor, others: Tensor) -> Tensor:
    """Images of ``those`` where ``rows`` (B,), of ``others`` elsewhere."""
    return torch.where(rows[:, None, None, None], those, others)
