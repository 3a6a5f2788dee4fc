"""Training of a victim classifier."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from lightning_modules.checks import check_fit
from lightning_modules.schedules import warmup_cosine
from lustral.networks import Classifier

Batch = tuple[Tensor, Tensor, Tensor]


class ClassifierTraining(LightningModule):
    """Cross-entropy on clean images.

    Args:
        classifier: the network; exported as ``weights.safetensors`` when training ends.
        lr: the highest learning rate.
        weight_decay: decoupled for adamw, coupled for sgd.
        optimizer: "adamw", or "sgd" with Nesterov momentum 0.9 (the WideResNet recipe).
        warmup: share of the steps over which the learning rate rises; a cosine takes it to zero after.
        label_smoothing: mass that the target gives to all classes alike, in [0, 1).
    """

    def __init__(
        self,
        classifier: Classifier,
        lr: float = 1e-3,
        weight_decay: float = 5e-4,
        optimizer: str = "adamw",
        warmup: float = 0.05,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if optimizer not in ("adamw", "sgd"):
            raise ValueError(f"optimizer is {optimizer!r}; it may be adamw or sgd.")
        self.classifier = classifier
        self.lr, self.weight_decay, self.optimizer = lr, weight_decay, optimizer
        self.warmup, self.label_smoothing = warmup, label_smoothing
        self.accuracy = MulticlassAccuracy(classifier.num_classes, average="micro")

    @property
    def exported(self) -> Classifier:
        """What the weights file holds."""
        return self.classifier

    def setup(self, stage: str) -> None:
        check_fit(getattr(self.trainer, "datamodule", None), [("classifier", self.classifier)])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y, _ = batch
        loss = F.cross_entropy(self.classifier(x), y, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, batch_size=len(x))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._judge(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._judge(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(B,) predicted classes."""
        return self.classifier(batch[0]).argmax(1)

    def _judge(self, batch: Batch, stage: str) -> None:
        x, y, _ = batch
        logits = self.classifier(x)
        self.accuracy(logits, y)
        self.log(f"{stage}/loss", F.cross_entropy(logits, y), batch_size=len(x), sync_dist=True)
        self.log(f"{stage}/accuracy", self.accuracy, on_step=False, on_epoch=True, prog_bar=True)

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        if self.optimizer == "adamw":
            optimizer = torch.optim.AdamW(parameters, self.lr, weight_decay=self.weight_decay)
        else:
            optimizer = torch.optim.SGD(parameters, self.lr, 0.9, weight_decay=self.weight_decay, nesterov=True)
        return warmup_cosine(optimizer, self.warmup, int(self.trainer.estimated_stepping_batches), cosine=True)
