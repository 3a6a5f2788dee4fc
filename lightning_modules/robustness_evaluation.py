"""The test loop as a robustness evaluation: attack and judge the images that have no record yet."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from lightning_modules.evaluation import Evaluation
from lustral.attacks import Attack, Cases
from lustral.defence import Merge
from lustral.evaluation import Defence, Evaluator, Expected, Key, Protocol, Record, write_card
from lustral.evaluation.portions import portions
from lustral.networks import Classifier
from lustral.purifiers import Purifier
from lustral.reporting.terminal import show_card
from lustral.threat import ThreatModel


class RobustnessEvaluation(Evaluation):
    """The robustness of a frozen defence under a white-box attack. Run with ``cli.py test``.

    Args:
        classifier: the victim.
        purifier: applied before the classifier; `lustral.purifiers.Identity` for none.
        attack: the attack.
        threat: the threat model.
        protocol: what is measured.
        seed: of all noise; a run with another seed is another evaluation.
        rows: R, the number of rows of every network call. It decides the last bits of the results; choose it as large
            as the device can use.
        graph_budget_mib: memory for graphs of reverse steps that are kept instead of recomputed, in MiB. Changes
            time, never a result.
        merge: how several views of one draw become one answer, "mean" or "vote" (see `lustral.defence.Defence`).
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        **Evaluation.unsupported,
        "validate": "A robustness evaluation has one loop: run it with `python cli.py test`.",
    }
    so_far = "robust"
    attacked = True

    def __init__(
        self,
        classifier: Classifier,
        purifier: Purifier,
        attack: Attack,
        threat: ThreatModel,
        protocol: Protocol,
        seed: int = 0,
        rows: int = 64,
        graph_budget_mib: float = 1024.0,
        merge: Merge = "mean",
    ) -> None:
        super().__init__()
        if graph_budget_mib < 0:
            raise ValueError(f"graph_budget_mib is {graph_budget_mib}; it cannot be negative.")
        defence = Defence(classifier, purifier, merge)
        budget = graph_budget_mib * 2**20
        evaluator = Evaluator(defence, attack, threat, protocol, seed, rows, self.step_told, budget)
        sources = [source.defence.purifier for source in evaluator.sources()]  # type: ignore[attr-defined]
        others = [other for other in sources if other is not purifier]
        surrogates = {f"surrogate {i}": other for i, other in enumerate(others)}
        self.evaluates(evaluator, {"purifier": purifier, **surrogates})
        self.evaluator: Evaluator = evaluator
        self._waiting: list[Cases] = []

    @property
    def main_task(self) -> str:
        return self.evaluator.attack.name

    def setup(self, stage: str) -> None:
        super().setup(stage)
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None:
            self.evaluator.threat.check((datamodule.channels, datamodule.image_size, datamodule.image_size))

    def audits(self) -> int:
        return self.evaluator.protocol.audit_images

    def judge(self, cases: Cases, replicate: int) -> None:
        """Attack and judge images, portion by portion; those that are audited wait for the end of the epoch."""
        dealt = frozenset[Key]() if self.dealing is None else self.dealing.audited
        audited = torch.tensor(
            [(replicate, index) in dealt for index in cases.index.tolist()], device=cases.index.device
        )
        self._waiting.append(cases.select(audited))  # only images of replicate 0 are audited
        self._evaluate(cases.select(~audited), audited=False, replicate=replicate)

    def on_test_epoch_end(self) -> None:
        """Attack, judge and audit the images that are audited, at most a batch at a time. They are collected until
        here, since few are in each batch and network calls are fuller if they are processed together."""
        waiting, self._waiting = self._waiting, []
        parts = zip(*((cases.images, cases.labels, cases.index) for cases in waiting), strict=True)
        columns = [torch.cat(part).split(self._batch_size) for part in parts]
        for images, labels, index in zip(*columns, strict=True):
            self._evaluate(Cases(images, labels, index), audited=True)

    def _evaluate(self, cases: Cases, audited: bool, replicate: int = 0) -> None:
        if len(cases) == 0:
            return
        evaluator = self.evaluator
        draws = evaluator.protocol.verdict_draws
        for portion in portions(len(cases), self.defence, evaluator.attack, draws, evaluator.rows):
            some = cases.select(portion.to(cases.index.device))
            self.in_work = len(some)
            asked = torch.full((len(some),), audited, device=some.index.device)
            records = evaluator.evaluate(some, asked, replicate)
            self.in_work = 0
            self.keep(records)

    def tally(self, record: Record) -> float:
        """The share of right draws under attack; 0 for a failed image."""
        draws, label = record.adversarial_logits[:, None], torch.tensor([record.label])
        return 0.0 if record.failed else float(Expected(len(draws))(draws, label))

    def write_card(self, folder: Path) -> dict[str, Any]:
        assert self.dealing is not None
        return write_card(folder, self.dealing.keys)

    def show_card(self, folder: Path, card: Mapping[str, Any], figures: Sequence[str]) -> None:
        show_card(folder, dict(card), figures)

    def card_metrics(self, card: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
        metrics = {
            f"card/{rule}_{kind}": verdict[kind]["value"]
            for rule, verdict in card["verdicts"].items()
            for kind in ("clean", "robust")
        }
        attack, defence = card["attack"], card["defence"]
        parameters = {
            "purifier": defence["purifier"]["class"],
            **{f"purifier/{k}": v for k, v in defence["purifier"].items() if isinstance(v, (bool, int, float, str))},
            **{f"attack/{k}": v for k, v in attack.items() if isinstance(v, (bool, int, float, str))},
            **{f"threat/{k}": str(v) for k, v in attack["threat"].items()},
            "seed": card["seed"],
            "status": card["status"],
        }
        return parameters, metrics
