"""The minimum-margin attack (MM, Gao et al., ICML 2022), as DAD makes its training examples with it."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from lustral.attacks.engine import Answer, Engine
from lustral.attacks.first_order import FirstOrderAttack, Held, State, likeliest_wrong_classes
from lustral.attacks.objectives import TARGET, Margin, Objective, Targeted, mean_over_draws
from lustral.attacks.victim import Cases
from lustral.noise import NoiseStream
from lustral.purifiers import GradientMode, Purifier, Variant
from lustral.ratio import Ratio, parse_ratio
from lustral.threat import ThreatModel

_NOTHING: Mapping[str, Tensor] = {}


class CappedTargetMargin(Targeted):
    """Mean over draws of -max(true logit - target's logit + confidence, 0): the target's lead, raised until it reaches
    ``confidence``. Iterates are ranked by the untargeted `Margin`.

    Args:
        confidence: in units of logits, not negative.
    """

    def __init__(self, confidence: float = 50.0) -> None:
        if not confidence >= 0:
            raise ValueError(f"confidence is {confidence}; it cannot be negative.")
        self.confidence = confidence

    @property
    def plain(self) -> Objective:
        return Margin()

    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        return mean_over_draws((self.gained(logits, y, given) - self.confidence).clamp_max(0.0))


class MMA(FirstOrderAttack):
    """Projected gradient ascent towards each of an image's most likely wrong classes in turn; of their last iterates,
    the one of largest margin is returned.

    The targets are the ``num_targets`` wrong classes with the largest logits of the clean image, which is nearly as
    good as all classes at a fraction of the cost. Every target has its own random start (DAD's code shares one).

    An image is not finished when it is broken, since examples for training should lie deep in the wrong class. For an
    evaluation take `APGDTargeted`, which adapts its steps and keeps the best iterates.

    Args:
        num_steps: gradient steps per target.
        num_targets: targets per image, at most the number of classes minus one.
        step_size: length of a step in the threat's norm; None takes 2.5 eps / num_steps, which is DAD's 2/255 for 8/255
            in 10 steps, and 1/255 for 4/255.
        random_start: begin at a uniform sample from the ball instead of the image.
        confidence: the lead of the target's logit from which on the loss is flat.
        eot: draws of the defence's noise that a gradient is averaged over.
        gradient: "exact", "bpda" or "detached".
        selection_draws: draws on which the targets' last iterates are compared.
        surrogate: what is differentiated in place of the defence's purifier (see `GradientAttack`).
        context: "own", or "clean" to hand the purifier the context of the clean image (see `GradientAttack`).

    Raises:
        ValueError: if an option is out of its range, or the classifier has too few classes.
    """

    gives = (TARGET,)

    def __init__(
        self,
        num_steps: int = 10,
        num_targets: int = 3,
        step_size: Ratio | None = None,
        random_start: bool = True,
        confidence: float = 50.0,
        eot: int = 1,
        gradient: GradientMode = "exact",
        selection_draws: int = 16,
        surrogate: None | Variant | Purifier = None,
        context: Held = "own",
    ) -> None:
        if num_targets < 1:
            raise ValueError(f"num_targets is {num_targets}; it must be at least 1.")
        if step_size is not None and parse_ratio(step_size, "attack.step_size") <= 0:
            raise ValueError(f"attack.step_size is {step_size}; it must be positive.")
        objective = CappedTargetMargin(confidence)
        super().__init__(
            num_steps,
            num_targets,
            eot,
            objective,
            gradient,
            "last_of_each",
            1,
            selection_draws,
            surrogate,
            context,
        )
        self.num_targets, self.step_size = num_targets, step_size
        self.random_start, self.confidence = random_start, confidence

    def targets(self, engine: Engine, cases: Cases, noise: NoiseStream) -> Tensor:
        return likeliest_wrong_classes(engine, cases, noise, self.eot, self.num_targets)

    def start(self, x: Tensor, y: Tensor, threat: ThreatModel, noise: NoiseStream) -> State:
        return State(threat.random_point(x, noise) if self.random_start else x, x, y, threat)

    def update(self, state: State, answer: Answer) -> State:
        threat = state.threat
        length = 2.5 * threat.budget / self.num_steps
        if self.step_size is not None:
            length = parse_ratio(self.step_size, "attack.step_size")
        moved = state.query + length * threat.ascent_direction(answer.gradient)
        return replace(state, query=threat.project(moved, state.x))
