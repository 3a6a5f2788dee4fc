"""The test loop as an evaluation under common corruptions, by type and severity, with and without purifier."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_modules.evaluation import Evaluation
from lustral.attacks import Cases
from lustral.corruptions import CommonCorruptions
from lustral.defence import Merge
from lustral.evaluation import CorruptionEvaluator, CorruptionRecord, Defence, Protocol, check_corruptions, write_card
from lustral.evaluation.corrupted import TASK
from lustral.evaluation.corruption_card import make_corruption_card, mean_right
from lustral.evaluation.portions import smallest_portion
from lustral.networks import Classifier
from lustral.purifiers import Purifier
from lustral.reporting.corruptions import card_numbers, show_corruptions
from lustral.reporting.heatmap import heat_map


class CorruptionEvaluation(Evaluation):
    """The accuracy of a frozen defence on images with common corruptions, by type and severity, and that of its bare
    classifier on the same images. Run with ``cli.py test``. docs/corruptions.md.

    Args:
        classifier: the classifier.
        purifier: applied before the classifier; `lustral.purifiers.Identity` for none.
        protocol: how many draws a verdict takes (the audit is one of attacks, and there is none here).
        corruptions: what is done to the images of the data module; None for data that are corrupted already, such as
            `datamodules.CIFAR10C`.
        seed: of all noise, that of the corruptions too; a run with another seed is another evaluation.
        rows: R, the number of rows of every network call. It decides the last bits of the results; choose it as large
            as the device can use.
        merge: how several views of one draw become one answer, "mean" or "vote" (see `lustral.defence.Defence`).
    """

    record_type = CorruptionRecord
    so_far = "right under corruptions"

    def __init__(
        self,
        classifier: Classifier,
        purifier: Purifier,
        protocol: Protocol,
        corruptions: CommonCorruptions | None = None,
        seed: int = 0,
        rows: int = 64,
        merge: Merge = "mean",
    ) -> None:
        super().__init__()
        defence = Defence(classifier, purifier, merge)
        evaluator = CorruptionEvaluator(defence, corruptions, protocol, seed, rows, self.step_told)
        self.evaluates(evaluator, {"purifier": purifier})
        self.evaluator: CorruptionEvaluator = evaluator

    @property
    def main_task(self) -> str:
        return TASK

    def setup(self, stage: str) -> None:
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None:
            self._check_source(datamodule)
        super().setup(stage)

    def _check_source(self, datamodule: Any) -> None:
        """Refuse images that would be corrupted twice, or not at all."""
        name, corrupted = type(datamodule).__name__, hasattr(datamodule, "corruption_of")
        if corrupted and self.evaluator.corruptions is not None:
            raise ValueError(
                f"The images of {name} are corrupted already, and model.corruptions would corrupt them again: leave it "
                "out (null), or choose data without corruption."
            )
        if not corrupted and self.evaluator.corruptions is None:
            raise ValueError(
                f"The images of {name} are not corrupted, and model.corruptions is null: give "
                "--model.corruptions lustral.corruptions.CommonCorruptions."
            )
        if corrupted and self.defence.group_size > 1:
            raise ValueError(
                f"{name} holds each image under many corruptions, which would be judged in one group of "
                f"{self.defence.group_size}: choose data without corruption, which are corrupted group by group."
            )

    def check(self) -> None:
        checked = self._checked
        super().check()
        if self.evaluator.corruptions is not None and not checked:
            check_corruptions(self.evaluator.corruptions, self._few(), self.evaluator.seed)

    def judge(self, cases: Cases, replicate: int) -> None:
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        for portion in self._portions(len(cases)):
            some = cases.select(portion.to(cases.index.device))
            self.in_work = len(some)
            told = datamodule.corruption_of(some.index.tolist()) if self.evaluator.corruptions is None else None
            records = self.evaluator.evaluate(some, replicate, told)
            self.in_work = 0
            self.keep(records)

    def _portions(self, images: int) -> Sequence[torch.Tensor]:
        """As few images at a time as need no more network calls than all at once (see `portions`)."""
        order, defence = torch.arange(images), self.defence
        if not defence.random or defence.ragged or defence.group_size > 1:
            return [order]
        return order.split(smallest_portion(images, {self.evaluator.protocol.verdict_draws}, self.evaluator.rows))

    def tally(self, record: CorruptionRecord) -> float:
        return mean_right(record)

    def write_card(self, folder: Path) -> dict[str, Any]:
        assert self.dealing is not None
        return write_card(folder, self.dealing.keys, make_corruption_card, CorruptionRecord)

    def card_figures(self, folder: Path, card: Mapping[str, Any]) -> dict[str, Any]:
        return {"corruptions": heat_map(dict(card))}

    def show_card(self, folder: Path, card: Mapping[str, Any], figures: Sequence[str]) -> None:
        show_corruptions(folder, dict(card), figures)

    def card_metrics(self, card: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
        purifier = card["defence"]["purifier"]
        parameters = {
            "purifier": purifier["class"],
            **{f"purifier/{k}": v for k, v in purifier.items() if isinstance(v, (bool, int, float, str))},
            "seed": card["seed"],
            "status": card["status"],
        }
        return parameters, card_numbers(dict(card))
