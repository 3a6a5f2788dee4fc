"""The test loop as an evaluation of detectors of adversarial images, one by one and in groups."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from lightning_modules.checks import check_fit
from lightning_modules.evaluation import Evaluation
from lustral.attacks import Attack, Cases
from lustral.detectors import DeepKernel, Detector, GroupDetector, Reference
from lustral.diffusion import Denoiser
from lustral.evaluation import DetectionEvaluator, DetectionRecord, write_card
from lustral.evaluation.detection import check_detectors
from lustral.evaluation.detection_card import make_detection_card
from lustral.evaluation.group_detection import group_section
from lustral.networks import Classifier
from lustral.ratio import Ratio, parse_ratio
from lustral.reporting.detection import detection_figures, detection_numbers, show_detection
from lustral.threat import ThreatModel


class DetectionEvaluation(Evaluation):
    """How well detectors tell adversarial images of a bare classifier from clean ones, over budgets and group sizes,
    with random noise of the same norm as a control. Run with ``cli.py test``. docs/detection.md.

    The attack knows nothing of the detectors: what is measured is whether they see it, not whether they resist it.

    Args:
        classifier: the victim.
        attack: the attack on it.
        threat: the norm, and the main budget, at which groups are tested.
        detectors: of single images, by name.
        group_detectors: of groups, by name; their two-sample tests compare test images with test images.
        budgets: further budgets.
        group_sizes: n; sizes of more than half of the tested images are left out, and the card says so.
        trials: tests, and groups, for each n; at least 40.
        num_reference: images of the reference of detectors that have none: the first validation images, at most so
            many.
        seed: of all noise; a run with another seed is another evaluation.
        rows: R, the number of rows of every network call.

    Raises:
        ValueError: if there is no detector, a name is used twice, or a number is out of its range.
    """

    record_type = DetectionRecord
    so_far = "still right under attack"

    def __init__(
        self,
        classifier: Classifier,
        attack: Attack,
        threat: ThreatModel,
        detectors: None | dict[str, Detector] = None,
        group_detectors: None | dict[str, GroupDetector] = None,
        budgets: Sequence[Ratio] = (),
        group_sizes: Sequence[int] = (10, 25, 50, 100),
        trials: int = 200,
        num_reference: int = 500,
        seed: int = 0,
        rows: int = 64,
    ) -> None:
        super().__init__()
        single, groups = dict(detectors or {}), dict(group_detectors or {})
        if (not single and not groups) or single.keys() & groups.keys():
            raise ValueError(
                f"detectors are {sorted(single)} and group_detectors {sorted(groups)}: give at least one, and each "
                "name once."
            )
        if trials < 40 or num_reference < 2 or not group_sizes or min(group_sizes) < 2:
            raise ValueError(
                f"trials = {trials}, num_reference = {num_reference}, group_sizes = {list(group_sizes)}: there must be "
                "at least 40 trials and 2 reference images, and groups of at least 2."
            )
        further = [parse_ratio(budget, "model.budgets") for budget in budgets]
        evaluator = DetectionEvaluator(classifier, attack, threat, further, single, groups, seed, rows, self.step_told)
        self.evaluates(evaluator, {"purifier": evaluator.defence.purifier})
        self.evaluator: DetectionEvaluator = evaluator
        self.parts = nn.ModuleDict({f"detector {name}": d for name, d in {**single, **groups}.items()})
        self.group_sizes, self.trials, self.num_reference = list(group_sizes), trials, num_reference
        self._data: Any = None

    @property
    def main_task(self) -> str:
        return self.evaluator.attack.name

    def untrained(self) -> list[str]:
        """The networks of the classifier and of the detectors that have random weights."""
        inner = [
            (f"{name}.{path}", module)
            for name, part in self.parts.items()
            for path, module in part.named_modules()
            if isinstance(module, (Denoiser, Classifier))
        ]
        random = [
            name for name, m in inner if getattr(m, "weights", None) is None and next(m.parameters(), None) is not None
        ]
        kernels = [
            f"{name}.{path}.network"
            for name, part in self.parts.items()
            for path, module in part.named_modules()
            if isinstance(module, DeepKernel) and module.weights is None
            if getattr(module.network, "weights", None) is None
        ]
        return [*super().untrained(), *random, *kernels]

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is None or not hasattr(data, "train_images"):
            raise ValueError("Detectors are judged with a data module of Lustral, which knows its validation images.")
        self._data = data
        networks = [m for part in self.parts.values() for m in part.modules() if isinstance(m, (Denoiser, Classifier))]
        check_fit(data, [(f"detector's {type(m).__name__}", m) for m in networks])
        if data.test_on == "validation":
            raise ValueError(
                "data.test_on is validation, but the detectors' reference is of validation images: leave it."
            )
        shape = (data.channels, data.image_size, data.image_size)
        for budget in self.evaluator.budgets:
            self.evaluator.at(budget).check(shape)
        lacking = [d for d in self._all() if d.needs_reference and d.reference is None]
        if lacking:
            positions = data.train_parts[1][: self.num_reference]
            made_by = {**data.train_fingerprint(), "part": "validation"}
            reference = Reference(data.train_images(positions)[0], torch.tensor(positions), made_by)
            for detector in lacking:
                detector.refer(reference)

    def _all(self) -> list[Detector | GroupDetector]:
        return [*self.evaluator.detectors.values(), *self.evaluator.group_detectors.values()]

    def fingerprint(self) -> Any:
        for detector in self._all():  # bandwidths that are open are found now, since they decide results
            detector.ready(self.device)
        return super().fingerprint()

    def check(self) -> None:
        checked = self._checked
        super().check()
        if not checked:
            check_detectors(self.evaluator.detectors, self._few(), self.evaluator.seed)

    def judge(self, cases: Cases, replicate: int) -> None:
        self.in_work = len(cases)
        records = self.evaluator.evaluate(cases)
        self.in_work = 0
        self.keep(records)

    def tally(self, record: DetectionRecord) -> float:
        return float(record.right[1 + self.evaluator.budgets.index(self.evaluator.threat.budget)])

    def write_card(self, folder: Path) -> dict[str, Any]:
        assert self.dealing is not None

        def make(records: Sequence[DetectionRecord], *facts: Any) -> dict[str, Any]:
            return make_detection_card(records, *facts, groups=self._groups(records))

        return write_card(folder, self.dealing.keys, make, DetectionRecord)

    @torch.no_grad()
    def _groups(self, records: Sequence[DetectionRecord]) -> dict[str, Any]:
        """What the card says of groups, from the images of the records."""
        evaluator, detectors = self.evaluator, self.evaluator.group_detectors
        sizes = [n for n in self.group_sizes if 2 * n <= len(records)]
        if not detectors or not sizes:
            return {}
        main = evaluator.budgets.index(evaluator.threat.budget)
        device = self.trainer.strategy.root_device
        index = torch.tensor([record.index for record in records], device=device)
        clean = self._data.test_images(index.tolist()).to(device)
        views = {
            "clean": clean,
            "adversarial": torch.stack([record.images[main] for record in records]).to(device),
            "random": evaluator.controls(clean, index)[main],
        }
        noises = {view: evaluator.seen(index, view) for view in views}
        found: dict[str, Any] = {"eps": evaluator.threat.budget, "trials": self.trials, "by_detector": {}}
        if left_out := [n for n in self.group_sizes if n not in sizes]:
            found["left_out"] = {"group_sizes": left_out, "why": f"more than half of {len(records)} images"}
        for name, detector in detectors.items():
            section = group_section(detector.to(device), views, noises, sizes, self.trials, evaluator.seed)
            found["by_detector"][name] = section
        return found

    def card_figures(self, folder: Path, card: Mapping[str, Any]) -> dict[str, Figure]:
        return detection_figures(card)

    def show_card(self, folder: Path, card: Mapping[str, Any], figures: Sequence[str]) -> None:
        show_detection(folder, card, figures)

    def card_metrics(self, card: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
        attack = card["attack"]
        parameters = {
            "attack": attack["class"],
            **{f"threat/{name}": str(value) for name, value in attack["threat"].items()},
            "seed": card["seed"],
            "status": card["status"],
        }
        return parameters, detection_numbers(card)
