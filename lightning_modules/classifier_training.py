"""Training of a victim classifier."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_modules.checks import check_fit
from lightning_modules.dropout import seed_dropout
from lightning_modules.module import LustralModule
from lightning_modules.optimisation import Interval, Optimisation
from lustral.networks import Classifier
from lustral.noise import NoiseStream
from lustral.training import ClassifierLoss, CleanCrossEntropy, WarmupCosine

Batch = tuple[Tensor, Tensor, Tensor]


class ClassifierTraining(LustralModule):
    """A classifier, and the loss that trains it.

    Args:
        classifier: the network; exported as ``weights.safetensors`` when training ends.
        loss: the training loss; CleanCrossEntropy by default.
        optimizer: any of torch.optim, or your own, with its options; it gets only the parameters that are trained.
        lr_scheduler: learning-rate schedule: lustral.training.WarmupCosine, WarmupConstant, or any of
            torch.optim.lr_scheduler.
        lr_interval: whether the schedule advances after every "step" (of the optimiser) or every "epoch".
        trainable: "all", or "head" for the last layer alone: the whole network is then in eval mode, so the running
            statistics of normalisation layers do not change either.
        channels_last: keep images and weights in channels-last memory format, which speeds up convolutions in half
            precision on a GPU.
        compile: compile the network (`torch.compile`); weights and results keep their names.
        seed: of dropout and of the loss's random numbers.
    """

    def __init__(
        self,
        classifier: Classifier,
        loss: None | ClassifierLoss = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=5e-4),
        lr_scheduler: LRSchedulerCallable = lambda o: WarmupCosine(o, warmup=0.05),
        lr_interval: Interval = "step",
        trainable: str = "all",
        channels_last: bool = False,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if trainable not in ("all", "head"):
            raise ValueError(f"trainable is {trainable!r}; it may be all or head.")
        self.classifier, self.classifier_loss = classifier, loss or CleanCrossEntropy()
        self.optimisation = Optimisation(optimizer, lr_scheduler, lr_interval)
        self.trainable, self.seed = trainable, seed
        if channels_last:
            self.classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            # A hook on the classifier, since the loss or an attack inside it may call the classifier too.
            self.classifier.register_forward_pre_hook(_channels_last)
        if trainable == "head":
            classifier.requires_grad_(False)
            classifier.last_layer.requires_grad_(True)
        if compile:
            self.classifier.compile()
        self.accuracy = MulticlassAccuracy(classifier.num_classes, average="micro")

    @property
    def exported(self) -> Classifier:
        """The network that is written to the weights file."""
        return self.classifier

    def setup(self, stage: str) -> None:
        check_fit(getattr(self.trainer, "datamodule", None), [("classifier", self.classifier)])

    def loss(self, x: Tensor, y: Tensor, noise: NoiseStream) -> Tensor:
        """(B,) losses of images ``x`` (B, C, H, W) in [0, 1] with labels ``y`` (B,); ``noise`` has B rows."""
        loss = self.classifier_loss(self.classifier, x, y, noise)
        if loss.shape != y.shape:
            raise ValueError(
                f"{type(self.classifier_loss).__name__} gives a loss of shape {tuple(loss.shape)} for {len(y)} images; "
                "it must be one number an image, (B,)."
            )
        return loss

    def on_train_start(self) -> None:
        if self.trainable == "head":  # here, since Lightning warns earlier about modules left in eval mode
            self.classifier.eval()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        seed_dropout(self.seed, self.trainer.fit_loop.total_batch_idx, self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y, index = batch
        loss = self.loss(x, y, NoiseStream(self.seed, index).at(iteration=self.global_step)).mean()
        self.log("train/loss", loss, batch_size=len(x))
        return loss

    def on_after_backward(self) -> None:
        self.classifier_loss.restore(self.classifier)

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
        return self.optimisation.configured(self.parameters(), self.trainer)


def _channels_last(classifier: nn.Module, images: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.contiguous(memory_format=torch.channels_last) for x in images)
