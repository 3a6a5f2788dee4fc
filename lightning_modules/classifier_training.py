"""Training of a victim classifier."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from lightning_modules.checks import check_fit
from lightning_modules.dropout import seed_dropout
from lightning_modules.mixup import mixup_draws
from lightning_modules.module import LustralModule
from lightning_modules.schedules import check_warmup, warmup_cosine
from lustral.networks import Classifier
from lustral.noise import NoiseStream

Batch = tuple[Tensor, Tensor, Tensor]


class ClassifierTraining(LustralModule):
    """Cross-entropy on clean images, or on mixtures of two (mixup: Zhang et al. 2018).

    Args:
        classifier: the network; exported as ``weights.safetensors`` when training ends.
        lr: the highest learning rate.
        weight_decay: decoupled for adamw, coupled for sgd.
        optimizer: "adamw", or "sgd" with Nesterov momentum 0.9 (the WideResNet recipe).
        warmup: share of the steps over which the learning rate rises; a cosine takes it to zero after.
        label_smoothing: mass that the target gives to all classes alike, in [0, 1).
        mixup_alpha: of the Beta(alpha, alpha) that an image's share in its mixture comes from; 0 mixes nothing.
        trainable: "all", or "head" for the last layer alone: the others then work as in evaluation, so the statistics
            of their normalisation stay as they are, too.
        channels_last: keep images and weights with the channels last in memory, which convolutions in half
            precision want on a GPU.
        compile: compile the network (`torch.compile`); weights and results keep their names.
        seed: of dropout and mixup: shares are keyed by sample and step, partners by the batch's samples and step.
    """

    def __init__(
        self,
        classifier: Classifier,
        lr: float = 1e-3,
        weight_decay: float = 5e-4,
        optimizer: str = "adamw",
        warmup: float = 0.05,
        label_smoothing: float = 0.0,
        mixup_alpha: float = 0.0,
        trainable: str = "all",
        channels_last: bool = False,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_warmup(warmup)
        if not lr > 0:
            raise ValueError(f"model.lr is {lr}; it must be positive.")
        if not 0 <= label_smoothing < 1 or weight_decay < 0:
            raise ValueError(
                f"model.label_smoothing = {label_smoothing} must lie in [0, 1), model.weight_decay = {weight_decay} "
                "must not be negative."
            )
        if optimizer not in ("adamw", "sgd"):
            raise ValueError(f"optimizer is {optimizer!r}; it may be adamw or sgd.")
        if mixup_alpha < 0:
            raise ValueError(f"mixup_alpha is {mixup_alpha}; it must be positive, or 0 for no mixup.")
        if trainable not in ("all", "head"):
            raise ValueError(f"trainable is {trainable!r}; it may be all or head.")
        self.classifier = classifier
        self.lr, self.weight_decay, self.optimizer = lr, weight_decay, optimizer
        self.warmup, self.label_smoothing = warmup, label_smoothing
        self.mixup_alpha, self.trainable, self.seed = mixup_alpha, trainable, seed
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.classifier.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        if trainable == "head":
            classifier.requires_grad_(False)
            classifier.last_layer.requires_grad_(True)
        if compile:
            self.classifier.compile()
        self.accuracy = MulticlassAccuracy(classifier.num_classes, average="micro")

    @property
    def exported(self) -> Classifier:
        """What the weights file holds."""
        return self.classifier

    def setup(self, stage: str) -> None:
        check_fit(getattr(self.trainer, "datamodule", None), [("classifier", self.classifier)])

    def loss(self, x: Tensor, y: Tensor, noise: NoiseStream) -> Tensor:
        """(B,) cross-entropies of [0, 1] images ``x`` or, with mixup, of a mixture for each."""
        if not self.mixup_alpha:
            return self._cross_entropy(self._logits(x), y)
        share, partner = mixup_draws(noise, self.mixup_alpha)
        own = share.to(x.dtype)
        weight = own[:, None, None, None]
        logits = self._logits(weight * x + (1 - weight) * x[partner])
        return own * self._cross_entropy(logits, y) + (1 - own) * self._cross_entropy(logits, y[partner])

    def on_train_start(self) -> None:
        if self.trainable == "head":  # after Lightning has looked for layers that somebody forgot to set to training
            self.classifier.eval()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        seed_dropout(self.seed, self.trainer.fit_loop.total_batch_idx, self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y, index = batch
        loss = self.loss(x, y, NoiseStream(self.seed, index).fork("mixup").at(iteration=self.global_step)).mean()
        self.log("train/loss", loss, batch_size=len(x))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._judge(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._judge(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(B,) predicted classes."""
        return self._logits(batch[0]).argmax(1)

    def _judge(self, batch: Batch, stage: str) -> None:
        x, y, _ = batch
        logits = self._logits(x)
        self.accuracy(logits, y)
        self.log(f"{stage}/loss", F.cross_entropy(logits, y), batch_size=len(x), sync_dist=True)
        self.log(f"{stage}/accuracy", self.accuracy, on_step=False, on_epoch=True, prog_bar=True)

    def _logits(self, x: Tensor) -> Tensor:
        return self.classifier(x.contiguous(memory_format=self.memory_format))

    def _cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, label_smoothing=self.label_smoothing, reduction="none")

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        if self.optimizer == "adamw":
            optimizer = torch.optim.AdamW(parameters, self.lr, weight_decay=self.weight_decay)
        else:
            optimizer = torch.optim.SGD(parameters, self.lr, 0.9, weight_decay=self.weight_decay, nesterov=True)
        return warmup_cosine(optimizer, self.warmup, int(self.trainer.estimated_stepping_batches), cosine=True)
