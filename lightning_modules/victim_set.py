"""The adversarial images of a frozen classifier that a training learns from: made once, by all processes."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lustral.attacks import Attack, Cases, Engine
from lustral.defence import Defence
from lustral.describe import describe
from lustral.networks import Classifier
from lustral.noise import NoiseStream
from lustral.purifiers import Identity
from lustral.threat import ThreatModel
from lustral.training import AdversarialSet

_SHARE = 4  # calls of R rows that are attacked together, and written when they are done


class VictimSet:
    """Makes and keeps adversarial images of training images, for the undefended classifier.

    Args:
        classifier: the victim; frozen here.
        attack: makes the images.
        threat: what it may do.
        rows: R, the rows of each network call.
        seed: of the attack's noise.
    """

    def __init__(self, classifier: Classifier, attack: Attack, threat: ThreatModel, rows: int, seed: int) -> None:
        self.classifier = classifier.eval().requires_grad_(False)
        self.attack, self.threat, self.rows, self.seed = attack, threat, rows, seed

    def made_by(self, data: Any) -> dict[str, Any]:
        """What decides the images, as plain data."""
        return {
            "classifier": describe(self.classifier),
            "attack": describe(self.attack),
            "threat": describe(self.threat),
            "data": data.train_fingerprint(),
            "seed": self.seed,
            "rows": self.rows,
        }

    def opened(self, module: LightningModule, data: Any, positions: list[int], folder: str | Path) -> AdversarialSet:
        """The set of the images at ``positions`` of the training split in ``folder``; what is missing is made, each
        process of ``module``'s trainer its share. Every process must call this.

        Raises:
            ValueError: if the folder holds another set, or the attack met NaN or Inf.
        """
        strategy = module.trainer.strategy
        shape, made_by = (data.channels, data.image_size, data.image_size), self.made_by(data)
        if module.trainer.is_global_zero:
            AdversarialSet(folder, positions, shape, made_by)
        strategy.barrier()
        kept = AdversarialSet(folder, positions, shape, made_by, create=False)
        todo = kept.missing()
        strategy.barrier()  # before anybody writes, so that all divide the same list
        if len(todo):
            rank_zero_info(f"Adversarial images of {len(todo)} positions are made: {kept.folder}")
        for share in todo[module.global_rank :: module.trainer.world_size].contiguous().split(self.rows * _SHARE):
            if len(share):
                x, y = (part.to(module.device) for part in data.train_images(share.tolist()))
                kept.write(share, self.attacked(x, y, share.to(module.device)))
        strategy.barrier()
        return kept

    @torch.enable_grad()
    def attacked(self, x: Tensor, y: Tensor, index: Tensor, step: int | None = None) -> Tensor:
        """Adversarial images of ``x`` (B, C, H, W) with labels ``y`` (B,) at positions ``index`` (B,); the attack's
        noise is another one for each ``step``.

        Raises:
            ValueError: if the attack met NaN or Inf.
        """
        self.classifier.to(x.device)
        engine = Engine(Defence(self.classifier, Identity()), self.rows)
        noise = NoiseStream(self.seed, index).fork("adversarial set", *([] if step is None else [str(step)]))
        result = self.attack(engine, Cases(x, y, index), self.threat, noise)
        if result.failed.any():
            raise ValueError(
                f"The attack met NaN or Inf at {int(result.failed.sum())} of {len(x)} images: check the classifier's "
                "weights and the trainer's precision."
            )
        return result.images.detach()
