"""First-order attacks as state machines over rows, and the loop that runs all of them.

The loop decides what must be the same for every attack: which noise a query sees (fresh at every iteration), which
iterates are kept, and how the returned one is chosen.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from lustral.attacks.base import Attack
from lustral.attacks.engine import Answer, Engine
from lustral.attacks.leaderboard import MEASURES, GradientStatistics, Leaderboard
from lustral.attacks.objectives import PERTURBATION, TARGET, CrossEntropy, Objective, mean_over_draws
from lustral.attacks.selection import score, select
from lustral.attacks.victim import Cases, group_sum
from lustral.noise import NoiseStream
from lustral.purifiers import GradientMode, Purifier, Variant
from lustral.threat import ThreatModel

_COMPACT_EVERY = 5  # steps between removals of decided cases: finding them synchronises with the device


Held = Literal["own", "clean"]
Selection = Literal["best", "last", "last_of_each"]


@dataclass(frozen=True)
class State:
    """The state of an attack, one row per image.

    Attributes:
        query: (B, C, H, W) the point at which loss and gradient are computed next.
        x: (B, C, H, W) the clean images.
        y: (B,) their labels.
        threat: the threat model.
        memory: further tensors with B rows that the attack keeps from step to step.
        given: further arguments of the objective, tensors with B rows (see `Objective`).
        context: context entries that are handed to the purifier, (B, draws, ...) each.
    """

    query: Tensor
    x: Tensor
    y: Tensor
    threat: ThreatModel
    memory: dict[str, Tensor] = field(default_factory=dict)
    given: dict[str, Tensor] = field(default_factory=dict)
    context: dict[str, Tensor] = field(default_factory=dict)

    def select(self, rows: Tensor) -> "State":
        parts = {
            name: {key: values[rows] for key, values in getattr(self, name).items()}
            for name in ("memory", "given", "context")
        }
        return replace(self, query=self.query[rows], x=self.x[rows], y=self.y[rows], **parts)


class GradientAttack(Attack):
    """An attack that follows gradients, of the defence itself or of a surrogate.

    Args:
        eot: draws of the defence's noise that a gradient is averaged over (Athalye et al. 2018).
        objective: the loss to be raised.
        gradient: how the purifier is differentiated (`lustral.purifiers.GradientMode`).
        selection_draws: draws on which candidates are compared. Neither the attack's queries nor the verdict see them.
        surrogate: what is differentiated in place of the defence's purifier: a `Variant` of it, or any other purifier,
            usually with fewer steps or at a fixed level. Queries go to the classifier behind the surrogate, selection
            uses the defence itself, and the card says so. None differentiates the defence.
        context: "own", or "clean": the purifier is handed the context of the clean image (levels, a mask) instead of
            that of the iterate, so the attack treats it as fixed.
        carry: entries of the context that are carried from step to step: the purifier is handed the values from the
            previous step's trace (latents).

    Attributes:
        gives: names of the further arguments that the attack passes to its objective (see `Objective`).

    Raises:
        ValueError: if an option is out of its range, or the objective needs arguments that the attack does not give, or
            a trace entry that ``gradient`` does not differentiate.
    """

    gives: tuple[str, ...] = ()

    def __init__(
        self,
        eot: int,
        objective: Objective,
        gradient: GradientMode,
        selection_draws: int,
        surrogate: None | Variant | Purifier,
        context: Held,
        carry: Sequence[str],
    ) -> None:
        for name, value in (("eot", eot), ("selection_draws", selection_draws)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        for name, given, known in (
            ("gradient", gradient, get_args(GradientMode)),
            ("context", context, get_args(Held)),
        ):
            if given not in known:
                raise ValueError(
                    f"{name} is {given!r}; it may be {', '.join(known)}. (Other ways of looking are variants of the "
                    "defence's purifier: attack.surrogate.)"
                )
        if isinstance(carry, str):
            raise ValueError(f"carry is {carry!r}; it is a list of names: [{carry}].")
        if not isinstance(carry, Sequence) or not all(isinstance(name, str) for name in carry):
            raise ValueError(f"carry is {carry!r}; it is a list of names, [] for none.")
        self.eot, self.objective, self.selection_draws = eot, objective, selection_draws
        self.gradient: GradientMode = gradient
        self.surrogate, self.context, self.carry = surrogate, context, list(carry)
        if lacking := [name for name in objective.expects if name not in self.gives]:
            raise ValueError(
                f"{type(objective).__name__} takes the {', '.join(lacking)} of each image, which {type(self).__name__} "
                "does not choose: use an attack that does, such as lustral.attacks.APGDTargeted for targets, or "
                "another attack.objective."
            )
        if objective.needs and gradient != "exact":
            raise ValueError(
                f"{type(objective).__name__} follows the {', '.join(objective.needs)}, which the gradient {gradient!r} "
                "does not see: attack.gradient may be exact, or choose another attack.objective."
            )

        ranks = objective.plain
        if ranks.needs or ranks.expects:
            raise ValueError(
                f"{type(objective).__name__} ranks iterates by {type(ranks).__name__}, which takes more than logits "
                "and labels: give it a `plain` objective that does not."
            )

    @property
    def target(self) -> str:
        return self.objective.target

    @property
    def measures(self) -> tuple[str, ...]:
        return MEASURES

    @property
    def sees_the_defence(self) -> bool:
        """Whether the attack queries the defence itself, with nothing handed to its purifier.

        The logits of anything else only guide the search: they decide no image, and some iterates are candidates for
        selection whatever their loss.
        """
        return self.surrogate is None and self.context == "own" and not self.carry

    def score(self, logits: Tensor, y: Tensor) -> Tensor:
        return score(self.objective, logits, y)

    def source(self, engine: Engine) -> Engine:
        """The engine that gradients come from: of the defence, or of the surrogate.

        Raises:
            ValueError: if its purifier lacks a gradient mode, a context entry or a trace entry that this attack needs.
        """
        source = engine.through(self.surrogate)
        purifier = getattr(source.defence, "purifier", None)
        if purifier is not None:
            held = purifier.holds if self.context == "clean" else ()
            if self.context == "clean" and not held:
                raise ValueError(
                    f"attack.context is clean, but nothing that {type(purifier).__name__} decides can be handed over: "
                    "leave it own."
                )
            if steered := sorted(set(self.objective.needs) & set(held)):
                raise ValueError(
                    f"{type(self.objective).__name__} follows the {', '.join(steered)}, which attack.context clean "
                    "holds fixed: leave attack.context own, or choose another attack.objective."
                )
            purifier.check(self.gradient, (*held, *self.carry), (*self.objective.needs, *self.carry))
        return source


class FirstOrderAttack(GradientAttack):
    """An attack that steps along gradients; subclasses are state machines over rows.

    Args:
        num_steps: gradient steps per restart.
        restarts: independent runs; the best iterate over all of them is returned.
        eot, objective, gradient, selection_draws, surrogate, context, carry: see `GradientAttack`; the objective is
            CrossEntropy if none is named.
        selection: "best" returns the iterate with the highest score on selection draws, of all restarts; "last" the
            last iterate of the last restart, as the classic implementations do; "last_of_each" the best on selection
            draws of the last iterates of all restarts, each of which is run to its end.
        finalists: iterates per image, those of highest loss, that are scored again on selection draws ("best" only).
        spread: further finalists per restart, evenly spaced over its steps, where the attack differentiates something
            other than the defence itself ("best" only).

    Raises:
        ValueError: if an option is out of its range.
    """

    gives = (PERTURBATION,)

    def __init__(
        self,
        num_steps: int,
        restarts: int = 1,
        eot: int = 1,
        objective: Objective | None = None,
        gradient: GradientMode = "exact",
        selection: Selection = "best",
        finalists: int = 3,
        selection_draws: int = 16,
        surrogate: None | Variant | Purifier = None,
        context: Held = "own",
        carry: Sequence[str] = (),
        spread: int = 2,
    ) -> None:
        super().__init__(eot, objective or CrossEntropy(), gradient, selection_draws, surrogate, context, carry)
        for name, value in (("num_steps", num_steps), ("restarts", restarts), ("finalists", finalists)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        if spread < 0:
            raise ValueError(f"spread is {spread}; it cannot be negative.")
        if selection not in get_args(Selection):
            raise ValueError(f"selection is {selection!r}; it may be {', '.join(get_args(Selection))}.")
        self.num_steps, self.restarts = num_steps, restarts
        self.selection: Selection = selection
        self.finalists, self.spread = finalists, spread

    @abstractmethod
    def start(self, x: Tensor, y: Tensor, threat: ThreatModel, noise: NoiseStream) -> State:
        """The state before the first query."""

    @abstractmethod
    def update(self, state: State, answer: Answer) -> State:
        """The next state, from the loss and the gradient at ``state.query``. Where the defence judges groups, a row's
        loss is the sum over the images of its group that are aimed at."""

    def ask(self, source: Engine, state: State, noise: NoiseStream, aim: Tensor | None) -> Answer:
        """The answer that `update` receives, by default the engine's at ``state.query``. A subclass may query several
        times, each with a fork of ``noise``, and combine the answers; loss and logits must be those of the query."""
        return source.answer(
            state.query,
            state.y,
            noise,
            self.objective,
            self.eot,
            self.gradient,
            state.context,
            state.x if self.context == "clean" else None,
            self._given(state),
            self.carry,
            aim,
        )

    def _given(self, state: State) -> dict[str, Tensor]:
        """The further arguments of the objective at ``state.query``."""
        if PERTURBATION not in self.objective.expects:
            return state.given
        return {**state.given, PERTURBATION: state.query - state.x}

    def targets(self, engine: Engine, cases: Cases, noise: NoiseStream) -> Tensor | None:
        """(restarts, B) int64, each restart's target class for an image; None if the attack is untargeted."""
        return None

    def told(self, source: Engine, cases: Cases, noise: NoiseStream) -> dict[str, Tensor]:
        """Further arguments of the objective from the first query on, (B, ...) each: clean logits, multipliers. Their
        names are among `gives`."""
        return {}

    def confine(self, engine: Engine, cases: Cases, noise: NoiseStream) -> Cases:
        """The cases with the pixels that this attack perturbs (`Cases.region`); by default all."""
        return cases

    def run(
        self, engine: Engine, cases: Cases, threat: ThreatModel, noise: NoiseStream
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if threat.budget == 0:
            zero = cases.images.new_zeros(len(cases))
            return cases.images.clone(), dict.fromkeys(MEASURES, zero)
        source = self.source(engine)
        cases = self.confine(engine, cases, noise.fork("region"))
        honest = self.sees_the_defence
        targets = self.targets(engine, cases, noise.fork("targets"))
        told = self.told(source, cases, noise.fork("told"))
        board = Leaderboard(cases, self.finalists, honest and not engine.defence.random, engine.group_size)
        statistics = GradientStatistics(cases.images)
        last = cases.images
        every = {self.num_steps * (j + 1) // (self.spread + 1) for j in range(self.spread)}
        spaced = set() if honest or self.selection == "last_of_each" else every
        for restart in range(self.restarts):
            rows = torch.arange(len(cases), device=cases.images.device)
            stream, some = noise.at(restart=restart), cases
            state = self.start(cases.images, cases.labels, threat, stream.fork("start"))
            state = replace(state, given={**state.given, **told})
            if targets is not None:
                state = replace(state, given={**state.given, TARGET: targets[restart]})
            state = replace(state, query=cases.confined(state.query))
            if state.context:  # the purifier is handed a context: the answers are not those of the defence itself
                board.may_decide = False
                spaced = spaced if self.selection == "last_of_each" else every
            for k in range(self.num_steps):
                if self.selection == "best" and board.may_decide and k % _COMPACT_EVERY == 0:
                    open_rows = ~board.decided[rows]
                    rows, state, some = rows[open_rows], state.select(open_rows), some.select(open_rows)
                    if len(rows) == 0:
                        break
                if k in spaced:
                    board.enter(rows, state.query)
                draws = stream.fork("gradient").at(iteration=k).select(rows)
                answer = self.ask(source, state, draws, some.aim)
                if (may := some.may) is not None:
                    answer = replace(answer, gradient=answer.gradient * may)
                board.offer(rows, state.y, state.query, answer)
                statistics.check(rows, answer)
                # An attack that compares losses compares those of whole groups, since these are judged together.
                loss = group_sum(answer.loss, engine.group_size, some.aim)
                after = self.update(state, replace(answer, loss=loss))
                after = replace(after, query=some.confined(after.query))
                if self.carry:
                    found = {name: answer.trace[name].transpose(0, 1) for name in self.carry}
                    after = replace(after, context={**after.context, **found})
                if restart == 0:
                    statistics.record(rows, state.query, answer, after.query)
                state = after
                engine.observe(self.name, restart * self.num_steps + k + 1, self.restarts * self.num_steps)
            else:
                board.enter(rows, state.query)
                last = cases.images.index_copy(0, rows, state.query)
        if self.selection == "last_of_each":
            ends = select(engine, board.entered, cases, noise.fork("selection"), self.selection_draws, self.score)
            statistics.mark(ends.failed)
            last = ends.images
        elif self.selection == "best":
            last = self._best(engine, cases, board, statistics, noise.fork("selection"))
        return last, statistics.result()

    def _best(
        self, engine: Engine, cases: Cases, board: Leaderboard, statistics: GradientStatistics, noise: NoiseStream
    ) -> Tensor:
        """For each decided case the image that broke it, for the others the best finalist on selection draws (see
        `select`)."""
        candidates = [*board.images, *board.entered]
        chosen = select(engine, candidates, cases, noise, self.selection_draws, self.score)
        statistics.mark(chosen.failed)
        return torch.where(board.decided[:, None, None, None], board.broken, chosen.images)


def likeliest_wrong_classes(engine: Engine, cases: Cases, noise: NoiseStream, draws: int, num_targets: int) -> Tensor:
    """(num_targets, B) the wrong classes with the largest mean logits of the clean images over ``draws`` draws, in
    descending order.

    Raises:
        ValueError: if there are fewer wrong classes than ``num_targets``.
    """
    logits = mean_over_draws(engine.logits(cases.images, noise, draws, "targets"))
    if num_targets >= logits.shape[-1]:
        raise ValueError(
            f"attack.num_targets is {num_targets}, but a classifier of {logits.shape[-1]} classes has only "
            f"{logits.shape[-1] - 1} wrong ones: lower it."
        )
    wrong = logits.scatter(1, cases.labels[:, None], -torch.inf)
    return wrong.sort(dim=1, descending=True, stable=True).indices[:, :num_targets].T
