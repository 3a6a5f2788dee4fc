"""First-order attacks as state machines over rows, and the one loop that runs them all.

The loop decides what no attack should decide for itself: which noise a query sees (fresh at every iteration),
which iterates are kept, and how the winner is chosen.
"""

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from lustral.attacks.base import Attack, Cases
from lustral.attacks.engine import Answer, Engine
from lustral.attacks.objectives import CrossEntropy, Objective, mean_over_draws
from lustral.attacks.selection import score, select
from lustral.noise import NoiseStream
from lustral.purifiers import GradientMode, Purifier
from lustral.threat import ThreatModel

MEASURES = ("zero_gradients", "right_draws", "loss_first", "loss_last", "predicted_gain")
"""The statistics of an attack that follows gradients."""
_COMPACT_EVERY = 5  # steps between looks at which cases are decided: a look waits for the device


@dataclass(frozen=True)
class State:
    """Where an attack stands, row by row.

    Attributes:
        query: (B, C, H, W) the point at which loss and gradient are wanted next.
        x: (B, C, H, W) the clean images.
        y: (B,) their labels.
        threat: the budget.
        memory: what else the attack carries from step to step, tensors with B rows.
    """

    query: Tensor
    x: Tensor
    y: Tensor
    threat: ThreatModel
    memory: dict[str, Tensor] = field(default_factory=dict)

    def select(self, rows: Tensor) -> "State":
        memory = {name: values[rows] for name, values in self.memory.items()}
        return replace(self, query=self.query[rows], x=self.x[rows], y=self.y[rows], memory=memory)


class FirstOrderAttack(Attack):
    """An attack that asks for gradients.

    Args:
        num_steps: gradient steps a restart.
        restarts: independent runs; the best iterate over all of them is kept.
        eot: draws of the defence's noise a gradient is averaged over (Athalye et al. 2018).
        objective: what is ascended.
        gradient: how the defence is differentiated (`lustral.purifiers.GradientMode`).
        selection: "best" keeps the iterate with the highest score of all restarts; "last" returns the last
            iterate of the last restart, as the classic implementations do.
        finalists: iterates an image that are scored again on selection draws (random defences, "best" only).
        selection_draws: draws of that score. They are seen neither by the attack nor by the verdict.
        surrogate: a purifier that is differentiated in place of the defence's: usually the same class with fewer steps
            or at a fixed level. Queries go to the classifier behind it, selection to the defence itself, and the card
            says so. None differentiates the defence.

    Raises:
        ValueError: if an option is out of its range, or the objective is blind under the gradient.
    """

    def __init__(
        self,
        num_steps: int,
        restarts: int = 1,
        eot: int = 1,
        objective: Objective | None = None,
        gradient: GradientMode = "exact",
        selection: Literal["best", "last"] = "best",
        finalists: int = 3,
        selection_draws: int = 16,
        surrogate: None | Purifier = None,
    ) -> None:
        for name, value in (("num_steps", num_steps), ("restarts", restarts), ("eot", eot), ("finalists", finalists)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        for name, given, known in (
            ("gradient", gradient, get_args(GradientMode)),
            ("selection", selection, ("best", "last")),
        ):
            if given not in known:
                raise ValueError(f"{name} is {given!r}; it may be {', '.join(known)}.")
        if selection_draws < 1:
            raise ValueError(f"selection_draws is {selection_draws}; it must be at least 1.")
        self.num_steps, self.restarts, self.eot = num_steps, restarts, eot
        self.objective = objective or CrossEntropy()
        self.gradient: GradientMode = gradient
        self.selection, self.finalists, self.selection_draws = selection, finalists, selection_draws
        self.surrogate = surrogate
        if gradient not in self.objective.gradient_modes:
            raise ValueError(
                f"{type(self.objective).__name__} follows what the gradient {gradient!r} does not see: attack.gradient "
                f"may be {', '.join(self.objective.gradient_modes)}, or choose another attack.objective."
            )

    @property
    def target(self) -> str:
        return self.objective.target

    @property
    def measures(self) -> tuple[str, ...]:
        return MEASURES

    @property
    def sees_the_defence(self) -> bool:
        """Whether the logits of its queries are those that the defence would give."""
        return self.surrogate is None and self.gradient not in ("frozen", "smooth")

    def score(self, logits: Tensor, y: Tensor) -> Tensor:
        return score(self.objective, logits, y)

    @abstractmethod
    def start(self, x: Tensor, y: Tensor, threat: ThreatModel, noise: NoiseStream) -> State:
        """The state before the first query."""

    @abstractmethod
    def update(self, state: State, answer: Answer) -> State:
        """The next state, from the loss and the gradient at ``state.query``."""

    def targets(self, engine: Engine, cases: Cases, noise: NoiseStream) -> Tensor | None:
        """(restarts, B) the class that each restart leads an image to; None if any wrong one will do."""
        return None

    def run(
        self, engine: Engine, cases: Cases, threat: ThreatModel, noise: NoiseStream
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if threat.budget == 0:
            zero = cases.images.new_zeros(len(cases))
            return cases.images.clone(), dict.fromkeys(MEASURES, zero)
        source = engine if self.surrogate is None else engine.through(self.surrogate)
        may_decide = self.sees_the_defence and not engine.defence.random
        targets = self.targets(engine, cases, noise.fork("targets"))
        leaderboard = _Leaderboard(cases.images, self.finalists, may_decide)
        statistics = GradientStatistics(cases.images)
        last = cases.images
        for restart in range(self.restarts):
            rows = torch.arange(len(cases), device=cases.images.device)
            stream = noise.at(restart=restart)
            state = self.start(cases.images, cases.labels, threat, stream.fork("start"))
            for k in range(self.num_steps):
                if self.selection == "best" and leaderboard.may_decide and k % _COMPACT_EVERY == 0:
                    open_rows = ~leaderboard.decided[rows]
                    rows, state = rows[open_rows], state.select(open_rows)
                    if len(rows) == 0:
                        break
                answer = source.answer(
                    state.query,
                    state.y,
                    stream.fork("gradient").at(iteration=k).select(rows),
                    self.objective,
                    self.eot,
                    self.gradient,
                    state.x,
                    None if targets is None else targets[restart, rows],
                )
                leaderboard.offer(rows, state.y, state.query, answer)
                statistics.check(rows, answer)
                after = self.update(state, answer)
                if restart == 0:
                    statistics.record(rows, state.query, answer, after.query)
                state = after
                engine.observe(self.name, restart * self.num_steps + k + 1, self.restarts * self.num_steps)
            else:
                leaderboard.enter(rows, state.query)
                last = cases.images.index_copy(0, rows, state.query)
        if self.selection == "best":
            last = self._best(engine, cases, leaderboard, statistics, noise.fork("selection"))
        return last, statistics.result()

    def _best(
        self, engine: Engine, cases: Cases, board: "_Leaderboard", statistics: "GradientStatistics", noise: NoiseStream
    ) -> Tensor:
        """Of a case that is decided the image that broke it, of the others the best finalist (see `select`)."""
        candidates = [*board.images, *board.entered]
        chosen = select(engine, candidates, cases.labels, noise, self.selection_draws, self.score)
        statistics.mark(chosen.failed)
        return torch.where(board.decided[:, None, None, None], board.broken, chosen.images)


def likeliest_wrong_classes(engine: Engine, cases: Cases, noise: NoiseStream, draws: int, num_targets: int) -> Tensor:
    """(num_targets, B) the wrong classes of the largest mean logits of the clean images under the defence, the largest
    first."""
    logits = mean_over_draws(engine.logits(cases.images, noise, draws, "targets"))
    if num_targets >= logits.shape[-1]:
        raise ValueError(
            f"attack.num_targets is {num_targets}, but a classifier of {logits.shape[-1]} classes has only "
            f"{logits.shape[-1] - 1} wrong ones: lower it."
        )
    wrong = logits.scatter(1, cases.labels[:, None], -torch.inf)
    return wrong.sort(dim=1, descending=True, stable=True).indices[:, :num_targets].T


class _Leaderboard:
    """The iterates of highest loss an image, and of a deterministic defence the first that breaks it.

    One wrong answer decides a case only where a second look could not differ. For a random defence it would be
    optional stopping: looking once in each of 100 steps "breaks" most images that nobody attacked.
    """

    def __init__(self, images: Tensor, size: int, may_decide: bool) -> None:
        self.may_decide = may_decide
        self.decided = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.broken = images.clone()
        self.images = images.repeat(size, 1, 1, 1, 1)
        self.losses = images.new_full((size, len(images)), -torch.inf, dtype=torch.float64)
        self.entered: list[Tensor] = []  # last iterates: their loss is not known, so each is a finalist
        self._clean = images

    def offer(self, rows: Tensor, y: Tensor, query: Tensor, answer: Answer) -> None:
        """An iterate with the loss and the logits of draws that it has not seen."""
        loss = answer.rank.double().nan_to_num(-torch.inf)
        slot = self.losses[:, rows].argmin(0)
        better = loss > self.losses[slot, rows]
        self.images[slot, rows] = torch.where(better[:, None, None, None], query, self.images[slot, rows])
        self.losses[slot, rows] = torch.where(better, loss, self.losses[slot, rows])
        if self.may_decide:
            broken = (answer.logits[0].argmax(-1) != y) & ~self.decided[rows]
            self.broken[rows] = torch.where(broken[:, None, None, None], query, self.broken[rows])
            self.decided[rows] |= broken

    def enter(self, rows: Tensor, query: Tensor) -> None:
        """An iterate whose loss is not known."""
        self.entered.append(self._clean.index_copy(0, rows, query))


class GradientStatistics:
    """What the audit asks about the first restart: does the gradient exist, and does following it raise the loss?"""

    def __init__(self, images: Tensor) -> None:
        zero = images.new_zeros(len(images))
        self.first, self.last, self.predicted = zero.clone(), zero.clone(), zero.clone()
        self._zero_rows, self._right_rows = zero.clone(), zero.clone()
        self._steps, self._ahead = zero.clone(), zero.clone()
        self._bad = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def check(self, rows: Tensor, answer: Answer) -> None:
        """Remember where an answer is no number, at whatever step of whatever restart."""
        finite = answer.loss.isfinite() & answer.gradient.flatten(1).isfinite().all(1)
        self._bad[rows] |= ~(finite & answer.logits.isfinite().all(-1).all(0))

    def mark(self, failed: Tensor) -> None:
        """Remember (B,) cases that met NaN or Inf elsewhere."""
        self._bad |= failed

    def record(self, rows: Tensor, query: Tensor, answer: Answer, following: Tensor) -> None:
        self.first[rows] = torch.where(self._steps[rows] == 0, answer.loss, self.first[rows])
        self.last[rows] = answer.loss
        self.predicted[rows] = self._ahead[rows]
        self._ahead[rows] += (answer.gradient * (following - query)).flatten(1).sum(1)
        self._zero_rows[rows] += answer.zero_rows
        self._right_rows[rows] += answer.right_rows
        self._steps[rows] += 1

    def result(self) -> dict[str, Tensor]:
        """(B,) each; NaN for every case that met NaN or Inf, which is how the base class learns of it."""
        found = {
            "zero_gradients": self._zero_rows / self._right_rows.clamp_min(1),
            "right_draws": self._right_rows,
            "loss_first": self.first,
            "loss_last": self.last,
            "predicted_gain": self.predicted,
        }
        return {name: values.masked_fill(self._bad, torch.nan) for name, values in found.items()}
