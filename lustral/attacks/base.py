"""The seam of every attack: the base class projects, checks and measures; the attack searches."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lustral.attacks.engine import Engine
from lustral.attacks.objectives import Margin
from lustral.attacks.selection import score
from lustral.attacks.victim import Cases, group_sum
from lustral.noise import NoiseStream
from lustral.threat import ThreatModel

BUDGET_TOLERANCE = 1e-6
"""Float32 rounding that a stored perturbation may exceed its budget by."""


@dataclass(frozen=True)
class AttackResult:
    """What an attack found, one row a case.

    Attributes:
        images: (B, C, H, W), within the threat model. Where ``failed``, the clean image.
        distance: (B,) norm of the perturbation.
        failed: (B,) whether NaN or Inf turned up, in any image of its group: no image to judge, and counted as broken
            by the evaluation.
        statistics: (B,) each, what the audit asks about: "zero_gradients" (share of the draws that are still right,
            "right_draws" of all steps together), "loss_first", "loss_last", "predicted_gain" (first-order change of the
            loss summed over the steps between the two). An ensemble's are described there.
    """

    images: Tensor
    distance: Tensor
    failed: Tensor
    statistics: dict[str, Tensor]


class Attack(ABC):
    """Searches the threat set of each case for the input that harms the defence most.

    Subclasses give `run`. Every one keeps a perturbed image for every case, successful or not.
    """

    @property
    def name(self) -> str:
        """The stream its noise is drawn from, and its name on the card."""
        return type(self).__name__

    @property
    def target(self) -> str:
        """The verdict rule that its objective and its selection aim at."""
        return "expected"

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of its statistics, the same for every image."""
        return ()

    def score(self, logits: Tensor, y: Tensor) -> Tensor:
        """(2, B) float64, the larger the worse for the defence: how wrong ``logits`` (N draws, B, K) are under the rule
        aimed at, and what decides among equals. By default the share of wrong draws, and the mean margin."""
        return score(Margin(), logits, y)

    @abstractmethod
    def run(
        self, engine: Engine, cases: Cases, threat: ThreatModel, noise: NoiseStream
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The found images (B, C, H, W), and statistics of (B,) each, those that it `measures`."""

    def __call__(self, engine: Engine, cases: Cases, threat: ThreatModel, noise: NoiseStream) -> AttackResult:
        """Attack ``cases``; ``noise`` is the run's stream of their rows. Final: subclasses give `run`."""
        low, high = cases.images.aminmax()
        if not (low >= threat.bounds[0] and high <= threat.bounds[1]):
            raise ValueError(
                f"Images lie in [{low:.4g}, {high:.4g}], but the threat model takes images in {list(threat.bounds)}: "
                "divide by 255 if they are grey levels."
            )
        with torch.no_grad():
            images, statistics = self.run(engine, cases, threat, noise.fork("attack", self.name))
            failed = ~images.flatten(1).isfinite().all(1)
            for values in statistics.values():
                failed |= ~values.isfinite()
            # A group is judged as it was found, or as it was given: never as a mixture that nobody looked at.
            failed = group_sum(failed.int(), engine.group_size, None) > 0
            images = torch.where(failed[:, None, None, None], cases.images, images)
            images = cases.confined(threat.project(images, cases.images))
            distance = threat.distance(images, cases.images)
        excess = float((distance - threat.budget).amax())
        assert excess <= BUDGET_TOLERANCE, f"{self.name} left its budget by {excess}"
        return AttackResult(images, distance, failed, statistics)
