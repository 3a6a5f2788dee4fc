"""The test loop as an evaluation of image quality: what purification does to clean and to adversarial images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure

from lightning_modules.evaluation import Evaluation
from lustral.attacks import Attack, Cases
from lustral.defence import Defence
from lustral.evaluation import read_records, write_card
from lustral.evaluation.adversarial_images import FoundInRun, MadeByAttack
from lustral.evaluation.portions import portions
from lustral.evaluation.quality import ADVERSARIAL, ALIGNMENT, CLOSER, PURIFIED, RIGHT, QualityEvaluator, QualityRecord
from lustral.evaluation.quality_card import make_quality_card
from lustral.networks import Classifier
from lustral.purifiers import Purifier
from lustral.purifiers.perceptual import Net
from lustral.reporting.quality import show_quality
from lustral.reporting.quality_sheets import quality_sheets
from lustral.threat import ThreatModel


class QualityEvaluation(Evaluation):
    """The image quality of a purifier on clean and adversarial images. Run with ``cli.py test``.

    The adversarial images are made by an attack, or taken from the records of a finished robustness evaluation of the
    same data and classifier. A cheap attack says nothing about robustness: that is not measured here.

    Args:
        classifier: the victim, whose features are compared.
        purifier: the purifier.
        attack: makes the adversarial images; null with ``adversarial_from``.
        threat: its threat model; null with ``adversarial_from``.
        adversarial_from: the folder of a robustness evaluation (runs/eval/RECIPE) whose adversarial images are taken.
        draws: purifications of each clean and each adversarial image.
        seed: of all noise; a run with another seed is another evaluation.
        rows: R, the number of rows of every network call (see `RobustnessEvaluation`).
        graph_budget_mib: memory for graphs of reverse steps that an attack keeps instead of recomputing, in MiB.
            Changes time, never a result.
        lpips: the network of LPIPS, "alex", "vgg" or "squeeze", for images of 32 pixels or more; its weights must be in
            torch's cache. None does not measure LPIPS.

    Raises:
        ValueError: if not exactly one of ``attack`` with ``threat`` and ``adversarial_from`` is given, or an option is
            out of its range.
    """

    record_type = QualityRecord
    so_far: ClassVar[str] = "known after purification"

    def __init__(
        self,
        classifier: Classifier,
        purifier: Purifier,
        attack: None | Attack = None,
        threat: None | ThreatModel = None,
        adversarial_from: None | str = None,
        draws: int = 1,
        seed: int = 0,
        rows: int = 64,
        graph_budget_mib: float = 1024.0,
        lpips: None | Net = None,
    ) -> None:
        super().__init__()
        if graph_budget_mib < 0:
            raise ValueError(f"graph_budget_mib is {graph_budget_mib}; it cannot be negative.")
        if adversarial_from is None and attack is not None and threat is not None:
            source: MadeByAttack | FoundInRun = MadeByAttack(attack, threat)
        elif adversarial_from is not None and attack is None and threat is None:
            source = FoundInRun(adversarial_from, classifier)
        else:
            raise ValueError(
                "Adversarial images come either from an attack within a threat model or from a finished run: give "
                "attack and threat, or adversarial_from with `--model.attack null --model.threat null`."
            )
        defence, budget = Defence(classifier, purifier), graph_budget_mib * 2**20
        evaluator = QualityEvaluator(defence, source, draws, seed, rows, lpips, self.step_told, budget)
        sources = [each.defence.purifier for each in evaluator.sources()]  # type: ignore[attr-defined]
        others = [other for other in sources if other is not purifier]
        self.evaluates(evaluator, {"purifier": purifier, **{f"surrogate {i}": o for i, o in enumerate(others)}})
        self.evaluator: QualityEvaluator = evaluator
        self.perceptual = evaluator.network  # registered, so that it moves to the device

    @property
    def main_task(self) -> str:
        attack = self.evaluator.attack
        return f"purification of {ADVERSARIAL} images" if attack is None else attack.name

    def setup(self, stage: str) -> None:
        super().setup(stage)
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None and self.dealing is not None:
            shape = (datamodule.channels, datamodule.image_size, datamodule.image_size)
            self.evaluator.source.check(self.fingerprint().decides["data"], self.dealing.keys, shape)

    def judge(self, cases: Cases, replicate: int) -> None:
        evaluator = self.evaluator
        draws, rows = evaluator.protocol.verdict_draws, evaluator.rows
        if evaluator.attack is None:
            parts = [torch.arange(len(cases))]
        else:
            parts = portions(len(cases), self.defence, evaluator.attack, draws, rows)
        for part in parts:
            some = cases.select(part.to(cases.index.device))
            self.in_work = len(some)
            records = evaluator.evaluate(some, replicate)
            self.in_work = 0
            self.keep(records)

    def tally(self, record: QualityRecord) -> float:
        """The share of right answers on the purified adversarial image; 0 for a failed image."""
        return record.values.get(f"{RIGHT} {PURIFIED[ADVERSARIAL]}", 0.0)

    def write_card(self, folder: Path) -> dict[str, Any]:
        assert self.dealing is not None
        return write_card(folder, self.dealing.keys, make_quality_card, QualityRecord)

    def card_figures(self, folder: Path, card: Mapping[str, Any]) -> dict[str, Figure]:
        assert self.dealing is not None
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        found = read_records(folder / "records", self.dealing.keys, QualityRecord)
        records = [found[key] for key in self.dealing.keys]
        device = self.trainer.strategy.root_device
        seed, names = self.evaluator.seed, datamodule.class_names
        return quality_sheets(self.defence, records, seed, datamodule.test_images, names, device)

    def show_card(self, folder: Path, card: Mapping[str, Any], figures: Sequence[str]) -> None:
        show_quality(folder, dict(card), figures)

    def card_metrics(self, card: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
        metrics = {
            f"card/{name}_{pair.replace(' ', '_')}": rate["value"]
            for pair, rates in card["quality"].items()
            for name, rate in rates.items()
        }
        metrics |= {f"card/known_{kind.replace(' ', '_')}": rate["value"] for kind, rate in card["right"].items()}
        metrics |= {f"card/{name}": card[name]["value"] for name in (CLOSER, ALIGNMENT)}
        purifier, attack = card["defence"]["purifier"], card["attack"]
        parameters = {
            "purifier": purifier["class"],
            **{f"purifier/{k}": v for k, v in purifier.items() if isinstance(v, (bool, int, float, str))},
            **{f"attack/{k}": v for k, v in attack.items() if isinstance(v, (bool, int, float, str))},
            **{f"threat/{k}": str(v) for k, v in attack["threat"].items()},
            "seed": card["seed"],
            "status": card["status"],
        }
        return parameters, metrics
