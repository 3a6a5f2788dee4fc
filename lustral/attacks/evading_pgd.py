"""PGD variants that treat a detector's threshold as a constraint: Lagrangian, and orthogonal to its gradient."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lustral.attacks.engine import Answer, Engine
from lustral.attacks.evasion import Evade, undetected_first
from lustral.attacks.first_order import State
from lustral.attacks.objectives import CrossEntropy, Objective, mean_over_draws
from lustral.attacks.pgd import PGD
from lustral.noise import NoiseStream
from lustral.purifiers import Purifier, Variant
from lustral.ratio import Ratio
from lustral.threat import ThreatModel

MULTIPLIER = "multiplier"
_NOTHING: Mapping[str, Tensor] = {}


class _Multiplied(Evade):
    """`Evade` with the weight that the attack gives for each image."""

    expects = (MULTIPLIER,)

    def __init__(self, objective: Objective, margin: float) -> None:
        super().__init__(objective, 1.0, margin)
        self.expects = (*objective.expects, MULTIPLIER)

    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        steering = given[MULTIPLIER] * mean_over_draws(self.term(trace, y, given))
        return self.objective(logits, y, trace, given) + steering.to(logits.dtype)


class LagrangianPGD(PGD):
    """PGD on CE - lambda * max(0, D / tau - (1 - margin)), where lambda grows by a factor in every step in which the
    group's statistic D is beyond the margin, and shrinks by it otherwise: it finds its own weight for each group.

    Args:
        num_steps, step_size, random_start, restarts, eot, objective, finalists, selection_draws, surrogate, spread: see
            `PGD`. The gradient is exact. The surrogate is the branch of undetected images, ``Variant({route: raw})``.
        margin: how far below the threshold the target is, as a share of it, in [0, 1).
        weight: lambda at the first step, positive.
        factor: by which lambda grows or shrinks, above 1.

    Raises:
        ValueError: if an option is out of its range.
    """

    gives = (MULTIPLIER,)

    def __init__(
        self,
        num_steps: int = 100,
        step_size: Ratio | None = None,
        random_start: bool = True,
        restarts: int = 1,
        eot: int = 1,
        objective: Objective | None = None,
        finalists: int = 3,
        selection_draws: int = 16,
        surrogate: None | Variant | Purifier = None,
        spread: int = 2,
        margin: float = 0.1,
        weight: float = 1.0,
        factor: float = 1.2,
    ) -> None:
        if not weight > 0 or not factor > 1:
            raise ValueError(f"weight is {weight} and factor {factor}; they must be above 0 and above 1.")
        self.margin, self.weight, self.factor = margin, weight, factor
        inner = objective or CrossEntropy()
        super().__init__(
            num_steps,
            step_size,
            random_start,
            restarts,
            eot,
            _Multiplied(inner, margin),
            finalists=finalists,
            selection_draws=selection_draws,
            surrogate=surrogate,
            spread=spread,
        )

    def start(self, x: Tensor, y: Tensor, threat: ThreatModel, noise: NoiseStream) -> State:
        begun = super().start(x, y, threat, noise)
        return replace(begun, given={MULTIPLIER: x.new_full((len(x),), self.weight, dtype=torch.float64)})

    def update(self, state: State, answer: Answer) -> State:
        beyond = mean_over_draws(answer.trace["alarm"]) > 1.0 - self.margin
        now = state.given[MULTIPLIER]
        after = super().update(state, answer)
        weight = torch.where(beyond, now * self.factor, now / self.factor)
        return replace(after, given={**after.given, MULTIPLIER: weight})


class OrthogonalPGD(PGD):
    """PGD along the gradient of the loss without its component along the detector's (Bryniarski et al. 2022): where the
    group's statistic is beyond the margin, down the statistic, without the component along the loss.

    The components are those of a group's whole perturbation. A step costs two gradients.

    Args:
        num_steps, step_size, random_start, restarts, eot, objective, finalists, selection_draws, surrogate, spread: see
            `PGD`. The gradient is exact. The surrogate is the branch of undetected images, ``Variant({route: raw})``.
        margin: how far below the threshold the attack turns round, as a share of it, in [0, 1).
    """

    def __init__(
        self,
        num_steps: int = 100,
        step_size: Ratio | None = None,
        random_start: bool = True,
        restarts: int = 1,
        eot: int = 1,
        objective: Objective | None = None,
        finalists: int = 3,
        selection_draws: int = 16,
        surrogate: None | Variant | Purifier = None,
        spread: int = 2,
        margin: float = 0.1,
    ) -> None:
        super().__init__(
            num_steps,
            step_size,
            random_start,
            restarts,
            eot,
            objective,
            finalists=finalists,
            selection_draws=selection_draws,
            surrogate=surrogate,
            spread=spread,
        )
        self.margin = margin
        self._alarm = _Alarm()
        Evade(self.objective, 1.0, margin)  # refuses a margin out of its range

    def ask(self, source: Engine, state: State, noise: NoiseStream, aim: Tensor | None) -> Answer:
        answer = super().ask(source, state, noise, aim)
        other = source.answer(state.query, state.y, noise, self._alarm, self.eot, self.gradient)
        size = source.group_size
        up, down = (_by_group(each.gradient, size) for each in (answer, other))
        beyond = (-other.loss > 1.0 - self.margin).view(-1, size)[:, :1]
        direction = torch.where(beyond, _without(down, up), _without(up, down))
        rank = undetected_first(answer.rank, other.trace)
        return replace(answer, rank=rank, gradient=direction.view_as(answer.gradient))


class _Alarm(Objective):
    """-D / tau."""

    needs = ("alarm",)

    @property
    def plain(self) -> Objective:
        return CrossEntropy()

    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        return -mean_over_draws(trace["alarm"]).to(logits.dtype)


def _by_group(gradient: Tensor, size: int) -> Tensor:
    return gradient.flatten(1).reshape(len(gradient) // size, -1).double()


def _without(direction: Tensor, other: Tensor) -> Tensor:
    """``direction`` (groups, n) without its component along ``other``, one group at a time."""
    found = []
    for one, two in zip(direction, other, strict=True):
        share = (one * two).sum() / two.square().sum().clamp_min(torch.finfo(two.dtype).tiny)
        found.append(one - share * two)
    return torch.stack(found).float()
