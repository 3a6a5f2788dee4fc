"""What purification does to images: likeness to the clean image, and distance to it in the victim's features.

Pei et al., "Divide and conquer: heterogeneous noise integration for diffusion-based adversarial purification", CVPR
2025, section 10: images that mean the same lie close together in the features of a classifier, and an adversarial image
lies far off although its pixels are close. docs/quality.md.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lustral.attacks import Attack, Cases, Engine, Judged, gradient_attacks
from lustral.defence import Defence
from lustral.diffusion import Context
from lustral.diffusion.distances import Net, lpips_network
from lustral.evaluation.adversarial_images import AdversarialImages
from lustral.evaluation.defence_evaluator import DefenceEvaluator
from lustral.evaluation.image_quality import alignment, feature_distance, likeness
from lustral.evaluation.protocol import Protocol
from lustral.evaluation.records import KeyedRecord
from lustral.noise import NoiseStream
from lustral.purifiers import GradientMode
from lustral.purifiers.perceptual import SMALLEST
from lustral.rows import Runtime
from lustral.votes import strictly_right

CLEAN, ADVERSARIAL = "clean", "adversarial"
PURIFIED = {CLEAN: "purified clean", ADVERSARIAL: "purified adversarial"}
KINDS = (CLEAN, ADVERSARIAL, *PURIFIED.values())
"""The kinds of images, in the order of a record's features."""
REMOVED = "purification"
PAIRS = {
    ADVERSARIAL: (ADVERSARIAL, CLEAN),
    PURIFIED[CLEAN]: (PURIFIED[CLEAN], CLEAN),
    PURIFIED[ADVERSARIAL]: (PURIFIED[ADVERSARIAL], CLEAN),
    REMOVED: (PURIFIED[ADVERSARIAL], ADVERSARIAL),
}
"""The pairs that are compared, by name: an image, and the one that it is compared with."""
MEASURES = ("psnr", "ssim", "lpips", "distance")
CLOSER, ALIGNMENT, RIGHT = "closer", "alignment", "right"


@dataclass(frozen=True)
class QualityRecord(KeyedRecord):
    """All that is stored of one sample whose purification was measured.

    Attributes:
        index: position in the full data set split.
        label: the true class.
        image: (C, H, W) float32, the adversarial image.
        failed: whether there was no adversarial image, or a purified one has NaN or Inf.
        values: the measures of each pair ("ssim purified clean"); "right" of each kind of image, the share of correct
            answers of the victim; "closer", the share of the draws in which purification brought the features of the
            adversarial image closer to those of the clean one; "alignment" (see `QualityEvaluator`). Means over draws
            and views; empty if ``failed``.
        features: (4, D) float32, penultimate features of the images of each of `KINDS`; of purified ones in the first
            draw.
        replicate: the number of the partition into groups; 0 where images are purified alone.
        group: the index of the first image of its group; None where images are purified alone.
    """

    index: int
    label: int
    image: Tensor
    failed: bool
    values: dict[str, float]
    features: Tensor
    replicate: int = 0
    group: int | None = None


class QualityEvaluator(DefenceEvaluator):
    """Purifies clean and adversarial images, and compares the results with the clean images.

    The purified images are those of a robustness evaluation's verdict draws with the same seed. "alignment" is the
    cosine of the angle between what the attack added to an image and what purification removed from it: 1 if it removed
    the perturbation and nothing else.

    Args:
        defence: the defence whose purifier is looked at, and the victim whose features are.
        source: where the adversarial images come from.
        draws: purifications of each clean and each adversarial image, at least 1.
        seed: the run's seed.
        rows: R, the number of rows of every network call.
        lpips: the network of LPIPS; None does not measure it.
        observe: called with (task, step, number of steps) to report progress.
        graph_budget: bytes that the graphs of reverse steps may take when they are kept instead of recomputed.

    Raises:
        ValueError: if ``draws`` is below 1, or LPIPS has no weights or the images are too small for it.
    """

    def __init__(
        self,
        defence: Defence,
        source: AdversarialImages,
        draws: int,
        seed: int,
        rows: int,
        lpips: Net | None = None,
        observe: Callable[[str, int, int], None] | None = None,
        graph_budget: float = 0.0,
    ) -> None:
        if draws < 1:
            raise ValueError(f"draws is {draws}; it must be at least 1.")
        super().__init__(defence, Protocol(draws, audit_images=0), seed, rows, observe, graph_budget)
        side = min(defence.classifier.image_shape[-2:])
        if lpips is not None and side < SMALLEST:
            raise ValueError(f"lpips is {lpips}, which compares images of {SMALLEST} pixels or more, not {side}: null.")
        self.source, self.lpips = source, lpips
        self.attack: Attack | None = source.attack
        self.network = None if lpips is None else lpips_network(lpips)
        for other in self.sources():
            other.defence.eval().requires_grad_(False)  # type: ignore[attr-defined]
        self._watched = self.engine.on(_Watched(defence))

    def decides(self) -> dict[str, Any]:
        return {
            "quality": {"lpips": self.lpips},
            "defence": self.describe_defence(),
            "adversarial": self.source.decides(),
            "protocol": {"verdict_draws": self.protocol.verdict_draws},
            "seed": self.seed,
            "rows": self.rows,
        }

    def evaluate(self, cases: Cases, replicate: int = 0) -> list[QualityRecord]:
        """Measure the purification of ``cases``, whole groups if the defence judges groups; one record per case."""
        noise, device = self.noise(cases.index, replicate), cases.images.device
        self.look_at_memory(cases, noise)
        draws = self.protocol.verdict_draws if self.defence.random else 1
        with self.cost.measured(len(cases), self.networks(), device), torch.no_grad():
            adversarial, failed = self.source(self.engine, cases, noise, replicate)
            images = {CLEAN: cases.images, ADVERSARIAL: adversarial}
            with self.cost.purifying(2 * draws * len(cases), device):
                purified = {kind: self._purified(x, noise, kind, draws) for kind, x in images.items()}
            seen = {kind: self._features(x) for kind, x in images.items()}
            values = self._compared(images, purified, seen, cases.labels)
        features = [seen[kind][0] for kind in images] + [purified[kind]["features"][0, :, 0] for kind in images]
        return self._records(cases, adversarial, failed, values, torch.stack(features, 1), replicate)

    def sources(self) -> list[Engine]:
        if self.attack is None:
            return []
        found = [member.source(self.engine) for member in gradient_attacks(self.attack)]
        return list({id(source.defence): source for source in found}.values())

    def _purified(self, x: Tensor, noise: NoiseStream, kind: str, draws: int) -> dict[str, Tensor]:
        """Of the purified images: "images" (draws, B, V, C, H, W), "features" (draws, B, V, D) and "logits" (draws, B,
        V, K) of all views."""
        task = f"purification of {kind} images"
        return self._watched.judge(x, noise.fork("verdict", kind), draws, _Watched.offers, task)[1]

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D) and logits (B, K) of the victim without purifier."""
        return self.engine.runtime.call(self.defence.classifier.features_and_logits, x)

    def _compared(
        self,
        images: Mapping[str, Tensor],
        purified: Mapping[str, Mapping[str, Tensor]],
        seen: Mapping[str, tuple[Tensor, Tensor]],
        labels: Tensor,
    ) -> dict[str, Tensor]:
        """(B,) float64 each: the values of a record."""
        draws, batch, views = purified[CLEAN]["images"].shape[:3]

        def each(values: Tensor) -> Tensor:
            """(draws * B * views, ...) from one row an image."""
            return values[None, :, None].expand(draws, batch, views, *values.shape[1:]).flatten(0, 2)

        rows = {kind: each(x) for kind, x in images.items()}
        rows |= {PURIFIED[kind]: found["images"].flatten(0, 2) for kind, found in purified.items()}
        features = {kind: each(found) for kind, (found, _) in seen.items()}
        features |= {PURIFIED[kind]: found["features"].flatten(0, 2) for kind, found in purified.items()}
        logits = {kind: each(found) for kind, (_, found) in seen.items()}
        logits |= {PURIFIED[kind]: found["logits"].flatten(0, 2) for kind, found in purified.items()}
        found = self.engine.runtime.call(self._row, rows, features, logits, each(labels))
        return {name: values.double().view(draws, batch, views).mean((0, 2)) for name, values in found.items()}

    def _row(
        self, images: dict[str, Tensor], features: dict[str, Tensor], logits: dict[str, Tensor], labels: Tensor
    ) -> dict[str, Tensor]:
        """The values of one draw and view, row by row."""
        found = {}
        for pair, (kind, other) in PAIRS.items():
            measures = likeness(images[kind], images[other], self.network)
            measures["distance"] = feature_distance(features[kind], features[other])
            found |= {f"{name} {pair}": values for name, values in measures.items()}
        found |= {f"{RIGHT} {kind}": strictly_right(logits[kind], labels) for kind in KINDS}
        found[CLOSER] = found[f"distance {PURIFIED[ADVERSARIAL]}"] < found[f"distance {ADVERSARIAL}"]
        added = images[ADVERSARIAL] - images[CLEAN]
        found[ALIGNMENT] = alignment(added, images[ADVERSARIAL] - images[PURIFIED[ADVERSARIAL]])
        return found

    def _records(
        self,
        cases: Cases,
        adversarial: Tensor,
        failed: Tensor,
        values: Mapping[str, Tensor],
        features: Tensor,
        replicate: int,
    ) -> list[QualityRecord]:
        size = self.defence.group_size
        for found in values.values():
            failed = failed | ~found.isfinite()
        broken, index, labels = failed.tolist(), cases.index.tolist(), cases.labels.tolist()
        told = {name: found.tolist() for name, found in values.items()}
        images, features = adversarial.cpu(), features.cpu()
        return [
            QualityRecord(
                index=index[i],
                label=labels[i],
                image=images[i],
                failed=broken[i],
                values={} if broken[i] else {name: found[i] for name, found in told.items()},
                features=features[i],
                replicate=replicate,
                group=None if size == 1 else index[i // size * size],
            )
            for i in range(len(cases))
        ]


class _Watched(nn.Module):
    """A defence as the engine asks it, whose trace has the purified images and what the victim sees in them."""

    offers = ("images", "features", "logits")

    def __init__(self, defence: Defence) -> None:
        super().__init__()
        self.defence = defence

    @property
    def random(self) -> bool:
        return self.defence.random

    @property
    def ragged(self) -> bool:
        return self.defence.ragged

    @property
    def group_size(self) -> int:
        return self.defence.group_size

    @property
    def runtime(self) -> Runtime:
        return self.defence.runtime

    @runtime.setter
    def runtime(self, runtime: Runtime) -> None:
        self.defence.runtime = runtime

    def forward(
        self,
        x: Tensor,
        noise: NoiseStream,
        gradient: GradientMode = "exact",
        context: Context | None = None,
        wants: Collection[str] = frozenset(),
    ) -> Judged:
        purified = self.defence.purifier(x, noise, gradient, context).images
        views, batch = purified.shape[:2]
        found = self.runtime.call(self.defence.classifier.features_and_logits, purified.flatten(0, 1))
        features, logits = (values.view(views, batch, -1).transpose(0, 1) for values in found)
        trace = {"images": purified.transpose(0, 1), "features": features, "logits": logits}
        return Judged(logits.mean(1), {name: trace[name] for name in wants})
