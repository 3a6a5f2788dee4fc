"""How good are the images that a diffusion model or a generator draws? A number at validation and test."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from callbacks.sample_grid import SampleGrid
from lustral.diffusion import Solver
from lustral.metrics import FrechetDistance
from lustral.networks import Classifier


class SampleQuality(SampleGrid):
    """Frechet distance of samples to the validation (test) images on a classifier's features; the sheet of `SampleGrid`
    too.

    Logs under ``val/`` or ``test/``:

    * ``frechet``: samples to the images of the validation or test part;
    * ``frechet_real``: training images to the same, the yardstick: what a perfect model would be given;
    * ``frechet_ratio``: the first divided by the second;
    * ``class_share_min``, ``class_share_max``: share of the samples in the class that the classifier sees least and
      most often.

    Small samples make every distance larger, the yardstick included, so the ratio is the number to compare. Processes
    share the samples, and exchange sums of features.

    Args:
        classifier: whose features; trained on these images. Or an Inception v3 out of a file, with ``resize``, see
            `lustral.metrics.FrechetDistance`: nothing is downloaded.
        solver: the reverse step; None is Ancestral, which follows every schedule. A generator has none.
        num_samples: how many; of the training images, and of those compared with, at most as many are taken.
        num_steps: reverse steps, from pure noise.
        every_n_epochs: of the validations while training, those after an epoch that this divides.
        num_images: samples on the sheet, the first ones (of several processes, the first one's share at most).
        resize: bring all images to the size and channels of the classifier.
        rows: images a network call.
        seed: of the samples' noise.
        label: tells this from another of the kind: with one_step, ``val/one_step_frechet`` and so on.

    Raises:
        ValueError: if a number is out of its range, the classifier's weights are random or it takes other images, or
            this stands before the `EMA` in trainer.callbacks.
    """

    def __init__(
        self,
        classifier: Classifier,
        solver: None | Solver = None,
        num_samples: int = 2000,
        num_steps: int = 50,
        every_n_epochs: int = 1,
        num_images: int = 64,
        resize: bool = False,
        rows: int = 128,
        seed: int = 0,
        label: str = "",
    ) -> None:
        super().__init__(solver, num_steps, num_images, every_n_epochs, rows, seed, label)
        if num_samples < 2:
            raise ValueError(f"num_samples is {num_samples}; a covariance takes at least 2.")
        if classifier.weights is None:
            raise ValueError(
                f"The weights of the {type(classifier).__name__} are random, and its features mean nothing: name a "
                "weights file (lustral.networks.load_classifier)."
            )
        self.classifier = classifier.eval().requires_grad_(False)
        self.num_samples, self.resize = num_samples, resize
        self._distances: dict[str, FrechetDistance] = {}
        self._yardsticks: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not hasattr(getattr(trainer, "datamodule", None), "train_parts"):
            raise ValueError(
                "SampleQuality compares with the images of a data module: give the trainer one of `datamodules`."
            )
        self._distances, self._yardsticks = {}, {}

    def act(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.classifier.to(pl_module.device)
        rank, processes = trainer.global_rank, trainer.world_size
        first, last = (self.num_samples * r // processes for r in (rank, rank + 1))
        images = self.draw(pl_module, torch.arange(first, last))
        if trainer.is_global_zero:
            self.show(trainer, images[: self.num_images], stage)
        distance, yardstick = self._to_real(trainer, stage)
        for part in images.split(self.rows):
            distance.update(part, real=False)
        frechet, shares = float(distance.compute()), distance.class_shares()
        distance.reset()
        numbers = {
            "frechet": frechet,
            "frechet_real": yardstick,
            "frechet_ratio": frechet / yardstick,
            "class_share_min": float(shares.min()),
            "class_share_max": float(shares.max()),
        }
        # Every process has the same numbers.
        pl_module.log_dict({self.key(stage, k): v for k, v in numbers.items()}, batch_size=1, sync_dist=True)

    def _to_real(self, trainer: Trainer, stage: str) -> tuple[FrechetDistance, float]:
        """The distance to the images of a stage, val or test, which has no generated ones yet, and that of the training
        images."""
        if stage not in self._distances:
            distance = FrechetDistance(self.classifier, self.resize)
            self._add(trainer, distance, stage, real=True)
            self._add(trainer, distance, "train", real=False)
            self._distances[stage], self._yardsticks[stage] = distance, float(distance.compute())
            distance.reset()
        return self._distances[stage], self._yardsticks[stage]

    def _add(self, trainer: Trainer, distance: FrechetDistance, part: str, real: bool) -> None:
        """This process's share of the images of a part, train, val or test, without augmentation."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        source = datamodule.test_source if part == "test" else datamodule.train_source
        chosen = datamodule.test_indices if part == "test" else datamodule.train_parts[part == "val"]
        own = evenly(chosen, self.num_samples)[trainer.global_rank :: trainer.world_size]
        for start in range(0, len(own), self.rows):
            images = torch.stack([source.image(p) for p in own[start : start + self.rows]])
            distance.update(images.to(distance.device), real)


def evenly(positions: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of ``positions``, evenly spread: a list that is sorted by class is not cut to its first."""
    step = max(1.0, len(positions) / count)
    return [positions[math.floor(i * step)] for i in range(min(count, len(positions)))]
