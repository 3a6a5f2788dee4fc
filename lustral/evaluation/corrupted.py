"""The evaluator of common corruptions: judges each corrupted image with the defence and with its bare classifier."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lustral.attacks import Cases, Engine
from lustral.corruptions import CommonCorruptions
from lustral.defence import Defence
from lustral.describe import describe
from lustral.evaluation.defence_evaluator import DefenceEvaluator
from lustral.evaluation.protocol import Protocol
from lustral.evaluation.records import KeyedRecord
from lustral.evaluation.selfcheck import generators
from lustral.evaluation.verdicts import all_rules
from lustral.noise import NoiseStream
from lustral.purifiers import Identity

CLEAN = ("clean", 0)
"""The cell of images without a corruption."""
Cell = tuple[str, int]
"""(type, severity) of a corruption."""
TASK = "corruptions"
"""The task under which progress is reported; its steps are cells."""


@dataclass(frozen=True)
class CorruptionRecord(KeyedRecord):
    """What is stored of one image.

    Attributes:
        index: position in the full data set split.
        label: the true class.
        position: the number of the image without its corruption: ``index``, unless the data set holds the same image
            under several corruptions.
        failed: whether a verdict met NaN or Inf; such a draw counts as wrong.
        cells: the (type, severity) that were judged, `CLEAN` among them if the image without corruption was.
        defended: (rules, cells) float32, the verdict of every rule of `all_rules` in [0, 1], of the defence.
        bare: the same of the classifier alone.
        replicate: the number of the partition into groups; 0 where images are judged alone.
        group: the index of the first image of its group; None where images are judged alone.
    """

    index: int
    label: int
    position: int
    failed: bool
    cells: list[Cell]
    defended: Tensor
    bare: Tensor
    replicate: int = 0
    group: int | None = None


class CorruptionEvaluator(DefenceEvaluator):
    """Corrupts images in every way, and judges them with and without purifier.

    The corrupted image depends on the image, its index and the seed alone: it is the same for every defence and in
    every replicate. Without corruption an image has the noise of the clean verdicts of an evaluation under attack.

    Args:
        defence: the defence that is judged, and whose classifier is judged alone beside it.
        corruptions: the corruptions; None for data that are corrupted already.
        protocol: its number of verdict draws, and its replicates.
        seed: the run's seed.
        rows: R, the number of rows of every network call.
        observe: called with (task, step, number of steps) to report progress.
    """

    def __init__(
        self,
        defence: Defence,
        corruptions: CommonCorruptions | None,
        protocol: Protocol,
        seed: int,
        rows: int,
        observe: Callable[[str, int, int], None] | None = None,
    ) -> None:
        super().__init__(defence, protocol, seed, rows, observe)
        self.corruptions = corruptions
        self._bare: Engine | None = None
        if not isinstance(defence.purifier, Identity):
            self._bare = self.engine.on(Defence(defence.classifier, Identity()).eval())

    def decides(self) -> dict[str, Any]:
        return {
            "kind": "corruptions",
            "defence": self.describe_defence(),
            "corruptions": describe(self.corruptions),
            "protocol": {"verdict_draws": self.protocol.verdict_draws},
            "seed": self.seed,
            "rows": self.rows,
        }

    def evaluate(
        self, cases: Cases, replicate: int = 0, told: Sequence[tuple[str, int, int]] | None = None
    ) -> list[CorruptionRecord]:
        """Judge ``cases``; one record per case.

        Args:
            cases: B images; whole groups if the defence judges groups.
            replicate: the number of the partition that the groups are from; each replicate has its own noise.
            told: of images that are corrupted already, (type, severity, position) of each.
        """
        noise, device = self.noise(cases.index, replicate), cases.images.device
        self.look_at_memory(cases, noise)
        views = self._views(cases, noise, told)
        defended, bare = list[Tensor](), list[Tensor]()
        finite = torch.ones(len(cases), dtype=torch.bool)
        num_draws = len(cases) * (self.protocol.verdict_draws if self.defence.random else 1)
        with self.cost.measured(len(cases), self.networks(), device):
            for number, (corrupt, stream) in enumerate(views):
                self.engine.observe(TASK, number, len(views))
                images = corrupt()
                with self.cost.purifying(num_draws, device):
                    found = self._judge(self.engine, images, cases, stream)
                alone = found if self._bare is None else self._judge(self._bare, images, cases, stream)
                defended.append(found[0])
                bare.append(alone[0])
                finite &= found[1] & alone[1]
        with_purifier, without = torch.stack(defended, -1), torch.stack(bare, -1)  # (rules, B, cells)
        labels, index, size = cases.labels.tolist(), cases.index.tolist(), self.defence.group_size
        own = [CLEAN, *self.corruptions.cells] if self.corruptions is not None else []
        return [
            CorruptionRecord(
                index=index[i],
                label=labels[i],
                position=index[i] if told is None else told[i][2],
                failed=not finite[i],
                cells=own if told is None else [told[i][:2]],
                defended=with_purifier[:, i],
                bare=without[:, i],
                replicate=replicate,
                group=None if size == 1 else index[i // size * size],
            )
            for i in range(len(cases))
        ]

    def _views(self, cases: Cases, noise: NoiseStream, told: object) -> list[tuple[Callable[[], Tensor], NoiseStream]]:
        """What makes the images of each cell, and the noise of their verdicts."""
        clean = [(lambda: cases.images, noise.fork("verdict", "clean"))]
        if self.corruptions is None:
            assert told is not None
            return clean
        corruptions, own = self.corruptions, NoiseStream(self.seed, cases.index)

        def view(name: str, severity: int) -> tuple[Callable[[], Tensor], NoiseStream]:
            stream = noise.fork("verdict", name, f"severity {severity}")
            return lambda: corruptions(cases.images, name, severity, own), stream

        return [*clean, *(view(*cell) for cell in corruptions.cells)]

    def _judge(self, engine: Engine, images: Tensor, cases: Cases, noise: NoiseStream) -> tuple[Tensor, Tensor]:
        """(rules, B) float32 verdicts, and (B,) whether all logits are finite; on the CPU."""
        logits = engine.logits(images, noise, self.protocol.verdict_draws)
        verdicts = [rule(logits, cases.labels) for rule in all_rules(self.protocol.verdict_draws)]
        return torch.stack(verdicts).float().cpu(), logits.isfinite().all(-1).all(0).cpu()


def check_corruptions(corruptions: CommonCorruptions, cases: Cases, seed: int) -> None:
    """Corrupt a few ``cases`` alone and among the others, at the highest severity, and compare.

    Raises:
        ValueError: if a corrupted image depends on anything but the image and the key of its noise.
    """
    noise = NoiseStream(seed, cases.index)
    for name in corruptions.types:
        before = generators()
        severity = corruptions.severities[-1]
        together = corruptions(cases.images, name, severity, noise)
        for i in range(len(cases)):
            row = torch.tensor([i], device=cases.index.device)
            if not torch.equal(corruptions(cases.images[row], name, severity, noise.select(row)), together[row]):
                raise ValueError(
                    f"The corruption {name} makes other pixels of image {int(cases.index[i])} alone than beside "
                    "others, so records would depend on the batch: leave it out with --model.corruptions.types."
                )
        if generators() != before:
            raise ValueError(
                f"The corruption {name} draws from a global generator, so no image could be had again: take every draw "
                "from the NoiseStream that it is given."
            )
