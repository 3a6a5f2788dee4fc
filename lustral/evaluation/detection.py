"""Detection: what detectors say of each image clean, attacked, and with random noise of the same norm."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lustral.attacks import Attack, Cases, Engine, gradient_attacks
from lustral.defence import Defence
from lustral.describe import describe
from lustral.detectors import Detector, GroupDetector
from lustral.detectors.thresholds import identity
from lustral.diffusion import Denoiser
from lustral.evaluation.defence_evaluator import DefenceEvaluator
from lustral.evaluation.protocol import Protocol
from lustral.evaluation.records import KeyedRecord
from lustral.networks import Classifier
from lustral.noise import NoiseStream
from lustral.purifiers import Identity
from lustral.threat import ThreatModel

KIND = "detection"
CLEAN, ADVERSARIAL, RANDOM = "clean", "adversarial", "random"


@dataclass(frozen=True)
class DetectionRecord(KeyedRecord):
    """What is stored of one image.

    Attributes:
        index: position in the full data set split.
        label: the true class.
        images: (budgets, C, H, W) float32, the adversarial image of each budget.
        right: whether the classifier is right on the clean image, and on the adversarial one of each budget.
        scores: for each detector of single images its statistics: clean, adversarial of each budget, random of each.
        failed: whether an attack or a statistic met NaN or Inf; the image then counts as an alarm when it is clean and
            as none when it is perturbed.
        replicate: 0; images are judged alone.
        group: None.
    """

    index: int
    label: int
    images: Tensor
    right: list[bool]
    scores: dict[str, list[float]]
    failed: bool
    replicate: int = 0
    group: int | None = None


class DetectionEvaluator(DefenceEvaluator):
    """Attacks a bare classifier at several budgets, and asks detectors.

    Args:
        classifier: the victim.
        attack: the attack; it knows nothing of the detectors.
        threat: the norm, and the main budget.
        budgets: further budgets.
        detectors: of single images, by name.
        group_detectors: of groups, by name; they are asked when all images have a record.
        seed: of all noise.
        rows: R, the number of rows of every network call.
        observe: called with (task, step, number of steps) to report progress.
    """

    def __init__(
        self,
        classifier: Classifier,
        attack: Attack,
        threat: ThreatModel,
        budgets: Sequence[float],
        detectors: Mapping[str, Detector],
        group_detectors: Mapping[str, GroupDetector],
        seed: int,
        rows: int,
        observe: Callable[[str, int, int], None] | None = None,
    ) -> None:
        super().__init__(Defence(classifier, Identity()), Protocol(1, 0, False), seed, rows, observe)
        self.attack, self.threat = attack, threat
        self.budgets = sorted({*budgets, threat.budget})
        self.detectors, self.group_detectors = dict(detectors), dict(group_detectors)
        for detector in (*detectors.values(), *group_detectors.values()):
            detector.eval().requires_grad_(False)
            detector.runtime = self.engine.runtime

    @property
    def adversary(self) -> Attack:
        return self.attack

    def sources(self) -> list[Engine]:
        found = [member.source(self.engine) for member in gradient_attacks(self.attack)]
        return list({id(source.defence): source for source in found}.values())

    def networks(self) -> Sequence[tuple[str, nn.Module]]:
        parts = [m for detector in self.detectors.values() for m in detector.modules() if isinstance(m, Denoiser)]
        once = {id(m): getattr(m, "network", m) for m in parts}.values()
        return [*super().networks(), *(("detector's denoiser", network) for network in once)]

    def decides(self) -> dict[str, Any]:
        detectors = {**self.detectors, **self.group_detectors}
        return {
            "kind": KIND,
            "defence": self.describe_defence(),
            "attack": {**describe(self.attack), "threat": describe(self.threat)},
            "budgets": self.budgets,
            "detectors": {name: {"class": type(d).__name__, "sha256": identity(d)} for name, d in detectors.items()},
            "references": {
                name: None if d.reference is None else d.reference.described() for name, d in detectors.items()
            },
            "protocol": {"verdict_draws": 1},
            "seed": self.seed,
            "rows": self.rows,
        }

    def at(self, budget: float) -> ThreatModel:
        """The threat model with another budget."""
        return replace(self.threat, eps=budget)

    def controls(self, x: Tensor, index: Tensor) -> list[Tensor]:
        """(B, C, H, W) each: images ``x`` with random noise of every budget."""
        noise = self.noise(index).fork("control")
        return [self.at(budget).random_boundary_point(x, noise.fork(f"{budget}")) for budget in self.budgets]

    @torch.no_grad()
    def evaluate(self, cases: Cases) -> list[DetectionRecord]:
        """Attack ``cases`` and ask the detectors of single images; one record per case."""
        noise, device = self.noise(cases.index), cases.images.device
        self.look_at_memory(cases, noise)
        failed = torch.zeros(len(cases), dtype=torch.bool, device=device)
        with self.cost.measured(len(cases), self.networks(), device):
            views = {CLEAN: cases.images}
            for budget in self.budgets:
                with torch.enable_grad():
                    result = self.attack(self.engine, cases, self.at(budget), noise)
                failed |= result.failed
                views[f"{ADVERSARIAL} {budget}"] = result.images.detach()
            for budget, images in zip(self.budgets, self.controls(cases.images, cases.index), strict=True):
                views[f"{RANDOM} {budget}"] = images
            right = [
                self.engine.logits(x, noise.fork("verdict", name))[0].argmax(1) == cases.labels
                for name, x in views.items()
                if not name.startswith(RANDOM)
            ]
            scores = {
                name: torch.stack([detector(x, self.seen(cases.index, view)) for view, x in views.items()])
                for name, detector in self.detectors.items()
            }
        for found in scores.values():
            failed |= ~found.isfinite().all(0)
            found[0] = found[0].nan_to_num(nan=1e300)
            found[1:] = found[1:].nan_to_num(nan=-1e300)
        adversarial = torch.stack([views[f"{ADVERSARIAL} {budget}"] for budget in self.budgets], 1)
        return [
            DetectionRecord(
                index=int(cases.index[i]),
                label=int(cases.labels[i]),
                images=adversarial[i],
                right=[bool(each[i]) for each in right],
                scores={name: found[:, i].tolist() for name, found in scores.items()},
                failed=bool(failed[i]),
            )
            for i in range(len(cases))
        ]

    def seen(self, index: Tensor, view: str) -> NoiseStream:
        """The noise with which detectors look at a view of images: "clean", "adversarial EPS" or "random EPS"."""
        return self.noise(index).fork("detection", view)


def check_detectors(detectors: Mapping[str, Detector], cases: Cases, seed: int) -> None:
    """Score a few ``cases`` alone and among the others, and compare.

    Raises:
        ValueError: if a score depends on anything but the image, its noise and the reference.
    """
    noise = NoiseStream(seed, cases.index).fork("check")
    for name, detector in detectors.items():
        together = detector(cases.images, noise)
        for i in range(len(cases)):
            row = torch.tensor([i], device=cases.index.device)
            if not torch.equal(detector(cases.images[row], noise.select(row)), together[row]):
                raise ValueError(
                    f"The detector {name} ({type(detector).__name__}) gives image {int(cases.index[i])} another "
                    "statistic alone than beside others, so records would depend on the batch: make its statistic "
                    "row-wise, through its `runtime`."
                )
