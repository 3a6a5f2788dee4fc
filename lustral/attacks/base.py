"""The base class of every attack: it projects, checks and measures; the subclass searches."""

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
"""By how much a stored perturbation may exceed its budget, for float32 rounding."""


@dataclass(frozen=True)
class AttackResult:
    """The result of an attack, one row per image.

    Attributes:
        images: (B, C, H, W), within the threat model. Where ``failed``, the clean image.
        distance: (B,) norm of the perturbation.
        failed: (B,) whether NaN or Inf turned up in any image of the row's group. There is then no image to judge, and
            the evaluation counts the row as broken.
        statistics: (B,) each, for the audit. Of an attack that follows gradients: "right_draws" (number of correctly
            classified draws, summed over the steps), "zero_gradients" (share of these whose gradient is zero),
            "loss_first", "loss_last", and "predicted_gain" (first-order change of the loss, summed over the steps
            between the two). Those of an ensemble are described in `Ensemble`.
    """

    images: Tensor
    distance: Tensor
    failed: Tensor
    statistics: dict[str, Tensor]


class Attack(ABC):
    """Searches the threat set of each image for the input that harms the defence most.

    Subclasses implement `run`. A perturbed image is kept for every case, whether the attack succeeded or not.
    """

    @property
    def name(self) -> str:
        """The name of the attack's noise stream, and its name on the card."""
        return type(self).__name__

    @property
    def target(self) -> str:
        """The verdict rule that the objective and the selection aim at."""
        return "expected"

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the attack's statistics, the same for every image."""
        return ()

    def score(self, logits: Tensor, y: Tensor) -> Tensor:
        """(2, B) float64 scores of ``logits`` (N draws, B, K); a larger score is worse for the defence.

        The first row says how wrong the logits are under the verdict rule aimed at, the second breaks ties. By default
        these are the share of misclassified draws and the mean margin.
        """
        return score(Margin(), logits, y)

    @abstractmethod
    def run(
        self, engine: Engine, cases: Cases, threat: ThreatModel, noise: NoiseStream
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The perturbed images (B, C, H, W), and the statistics named by `measures`, (B,) each."""

    def __call__(self, engine: Engine, cases: Cases, threat: ThreatModel, noise: NoiseStream) -> AttackResult:
        """Attack ``cases``; ``noise`` is the run's stream, one row per case. Final: subclasses implement `run`.

        Raises:
            ValueError: if an image lies outside the threat model's bounds.
        """
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
            # If one image of a group failed, all its images stay clean: the attack never queried a mixture of both.
            failed = group_sum(failed.int(), engine.group_size, None) > 0
            images = torch.where(failed[:, None, None, None], cases.images, images)
            images = cases.confined(threat.project(images, cases.images))
            distance = threat.distance(images, cases.images)
        excess = float((distance - threat.budget).amax())
        assert excess <= BUDGET_TOLERANCE, f"{self.name} left its budget by {excess}"
        return AttackResult(images, distance, failed, statistics)
