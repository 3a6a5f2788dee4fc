"""Projected gradient descent (Madry et al. 2018) with expectation over transformation (Athalye et al. 2018)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from torch import Tensor

from lustral.attacks.engine import Answer, Engine
from lustral.attacks.first_order import FirstOrderAttack, Held, State
from lustral.attacks.objectives import Objective
from lustral.attacks.regions import Region, check_mask, low_noise
from lustral.attacks.victim import Cases
from lustral.noise import NoiseStream
from lustral.purifiers import GradientMode, Purifier, Variant
from lustral.ratio import Ratio, parse_ratio
from lustral.threat import ThreatModel


class PGD(FirstOrderAttack):
    """x <- project(x + step_size * d), with d the sign of the gradient (linf) or the normalised gradient (l2).

    Without a random start, with ``selection: last`` and R equal to the batch size, the iterates are those of the
    classic implementations bit for bit.

    Args:
        num_steps: gradient steps per restart.
        step_size: length of a step in the threat's norm ("0.007" and "2/255" are usual on CIFAR-10); None takes
            2.5 eps / num_steps.
        random_start: begin at a uniform sample from the ball instead of the image.
        restarts: independent runs.
        eot: draws of the defence's noise that a gradient is averaged over.
        objective: the loss to be raised; CrossEntropy if none is named.
        gradient: "exact", "bpda" or "detached".
        selection: "best" or "last" iterate (see `FirstOrderAttack`).
        finalists: iterates per image that are scored again on selection draws.
        selection_draws: draws of the defence's noise on which finalists are scored.
        surrogate: what is differentiated in place of the defence's purifier, a `Variant` of it or another purifier;
            None differentiates the defence (see `GradientAttack`).
        context: "own", or "clean" to hand the purifier the context of the clean image (see `GradientAttack`).
        carry: entries of the context that are carried from step to step (see `GradientAttack`).
        spread: further finalists per restart, evenly spaced over its steps, where the attack differentiates something
            other than the defence itself.
        region: the pixels that are perturbed: "all"; or "low_noise", those outside of the mask that the defence's
            `HeterogeneousNoise` makes of the clean image (of one draw, if the mask is random).

    Raises:
        ValueError: if an option is out of its range; with "low_noise", in `source`, if the defence has no mask.
    """

    def __init__(
        self,
        num_steps: int = 20,
        step_size: Ratio | None = None,
        random_start: bool = True,
        restarts: int = 1,
        eot: int = 1,
        objective: Objective | None = None,
        gradient: GradientMode = "exact",
        selection: Literal["best", "last"] = "best",
        finalists: int = 3,
        selection_draws: int = 16,
        surrogate: None | Variant | Purifier = None,
        context: Held = "own",
        carry: Sequence[str] = (),
        spread: int = 2,
        region: Region = "all",
    ) -> None:
        super().__init__(
            num_steps,
            restarts,
            eot,
            objective,
            gradient,
            selection,
            finalists,
            selection_draws,
            surrogate,
            context,
            carry,
            spread,
        )
        if restarts > 1 and not random_start:
            raise ValueError(f"attack.restarts is {restarts} without a random start: all would start at the image.")
        if step_size is not None and parse_ratio(step_size, "attack.step_size") <= 0:
            raise ValueError(f"attack.step_size is {step_size}; it must be positive.")
        if region not in get_args(Region):
            raise ValueError(f"attack.region is {region!r}; it may be {', '.join(get_args(Region))}.")
        self.step_size, self.random_start, self.region = step_size, random_start, region

    def step_length(self, threat: ThreatModel) -> float:
        """The step size in the threat's norm."""
        if self.step_size is None:
            return 2.5 * threat.budget / self.num_steps
        return parse_ratio(self.step_size, "attack.step_size")

    def source(self, engine: Engine) -> Engine:
        if self.region == "low_noise":
            check_mask(engine)
        return super().source(engine)

    def confine(self, engine: Engine, cases: Cases, noise: NoiseStream) -> Cases:
        return cases if self.region == "all" else replace(cases, region=low_noise(engine, cases, noise))

    def start(self, x: Tensor, y: Tensor, threat: ThreatModel, noise: NoiseStream) -> State:
        query = threat.random_point(x, noise) if self.random_start else x
        return State(query, x, y, threat)

    def update(self, state: State, answer: Answer) -> State:
        moved = state.query + self.step_length(state.threat) * state.threat.ascent_direction(answer.gradient)
        return replace(state, query=state.threat.project(moved, state.x))
