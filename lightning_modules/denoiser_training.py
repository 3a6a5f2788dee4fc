"""Training of DAD's denoiser."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_modules.checks import check_fit
from lightning_modules.module import LustralModule
from lightning_modules.optimisation import Interval, Optimisation
from lightning_modules.victim_set import VictimSet
from lustral.attacks import Attack
from lustral.detectors import Kernel
from lustral.networks import Classifier, DUNet
from lustral.noise import NoiseStream
from lustral.threat import ThreatModel
from lustral.training import AdversarialSet, DenoiserLoss

Batch = tuple[Tensor, Tensor, Tensor]


class DenoiserTraining(LustralModule):
    """A denoiser that learns to make adversarial images, with noise added, look clean to an MMD and to the classifier.

    Adversarial images are made by the attack on the undefended, frozen classifier. With ``adversarial: once``, those of
    all training and validation images are made before the first epoch, without augmentation, and kept in
    ``adversarial_folder`` with a record of how they were made; a training that is started again goes on with what is
    there. With ``every_epoch`` the attack is run on each batch as the data module augments it, which costs as many
    network calls in every epoch as the set costs once.

    The discrepancy is that of a process's own batch: with several processes, the sum over processes is not the
    discrepancy of all their images, so choose ``data.batch_size`` (per process) as if there were one. Batch
    normalisation's statistics are per process too, unless ``trainer.sync_batchnorm`` is set.

    Args:
        denoiser: the network; exported as ``weights.safetensors`` when training ends.
        classifier: the victim, with weights; frozen.
        kernel: of the discrepancy; frozen. Open bandwidths are set to the median squared distance between the first
            validation images and their adversarial ones.
        attack: makes the adversarial images.
        threat: what it may do.
        loss: MMD^2 + alpha CE, and the noise before the denoiser.
        adversarial: "once" or "every_epoch".
        adversarial_folder: where the set is kept; None: ``adversarial`` in the run's folder.
        mirror: mirror each image of the set left to right with probability 1/2, keyed by sample and step, where the
            data module mirrors the clean ones by itself. (Discrepancies are of sets, so the two need not agree.)
        optimizer: any of torch.optim, or your own, with its options.
        lr_scheduler: learning-rate schedule.
        lr_interval: whether the schedule advances after every "step" (of the optimiser) or every "epoch".
        rows: R, the rows of each network call of the attack.
        seed: of the attack, the noise and the mirroring.

    Raises:
        ValueError: if an option is not one of those allowed.
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        "predict": "A denoiser has no classes to predict: judge it in a defence, as with `python cli.py test -c "
        "configs/eval/digits.yaml --model.purifier configs/purifier/digits_denoise.yaml`.",
    }

    def __init__(
        self,
        denoiser: DUNet,
        classifier: Classifier,
        kernel: Kernel,
        attack: Attack,
        threat: ThreatModel,
        loss: None | DenoiserLoss = None,
        adversarial: Literal["once", "every_epoch"] = "once",
        adversarial_folder: None | str = None,
        mirror: bool = False,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-3),
        lr_scheduler: LRSchedulerCallable = lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [45, 60]),
        lr_interval: Interval = "epoch",
        rows: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if adversarial not in ("once", "every_epoch"):
            raise ValueError(f"adversarial is {adversarial!r}; it may be once or every_epoch.")
        if mirror and adversarial == "every_epoch":
            raise ValueError("mirror is for a stored set: with adversarial every_epoch, the data module mirrors.")
        self.denoiser = denoiser
        self.denoiser_loss = loss or DenoiserLoss()
        self.adversarial, self.adversarial_folder, self.mirror = adversarial, adversarial_folder, mirror
        self.optimisation = Optimisation(optimizer, lr_scheduler, lr_interval)
        self.seed = seed
        self.victims = VictimSet(classifier, attack, threat, rows, seed)
        # In a tuple, so that it is no part of checkpoints: it is frozen, and has a file of its own.
        self._kernel = (kernel.eval().requires_grad_(False),)
        self.accuracy = MulticlassAccuracy(classifier.num_classes, average="micro")
        self._set: AdversarialSet | None = None

    @property
    def exported(self) -> DUNet:
        """The network that is written to the weights file."""
        return self.denoiser

    @property
    def classifier(self) -> Classifier:
        return self.victims.classifier

    @property
    def kernel(self) -> Kernel:
        return self._kernel[0]

    def setup(self, stage: str) -> None:
        if self.classifier.weights is None:
            raise ValueError(
                "The classifier has random weights, and a denoiser of images that fool it would learn nothing: name a "
                "file with --model.classifier.weights."
            )
        parts: list[tuple[str, nn.Module]] = [("denoiser", self.denoiser), ("classifier", self.classifier)]
        check_fit(getattr(self.trainer, "datamodule", None), parts)

    # The adversarial images -----------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        self._prepare()

    def on_validation_start(self) -> None:
        if self._set is None and self.adversarial == "once":
            self._prepare()

    def _prepare(self) -> None:
        """Move the frozen networks to the device, make what is missing of the set, and close the kernel's scales."""
        for part in (self.classifier, self.kernel):
            part.to(self.device)
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is None or not hasattr(data, "train_images"):
            raise ValueError("A denoiser is trained with a data module of Lustral, which knows its training images.")
        train, val = data.train_parts
        if self.adversarial == "once":
            folder = self.adversarial_folder or str(Path(self.trainer.default_root_dir) / "adversarial")
            self._set = self.victims.opened(self, data, [*train, *val], folder)
        first = torch.tensor(val[: self.victims.rows], device=self.device)
        clean, y = (part.to(self.device) for part in data.train_images(first.tolist()))
        attacked = self._set.read(first) if self._set is not None else self.victims.attacked(clean, y, first, 0)
        self.kernel.adapt(clean, attacked)

    def adversarial_of(self, batch: Batch, noise: NoiseStream) -> Tensor:
        """The adversarial images (B, C, H, W) of a batch."""
        x, y, index = batch
        if self._set is None:
            return self.victims.attacked(x, y, index, self.global_step)
        images = self._set.read(index)
        if not self.mirror or not self.training:
            return images
        mirrored = noise.fork("mirror").uniform((1, 1, 1)) < 0.5
        return torch.where(mirrored, images.flip(-1), images)

    # The training ---------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y, index = batch
        noise = NoiseStream(self.seed, index).fork("train").at(iteration=self.global_step)
        attacked = self.adversarial_of(batch, noise)
        terms = self.denoiser_loss.terms(self.denoiser, self.classifier, self.kernel, x, attacked, y, noise)
        loss = self.denoiser_loss.total(terms)
        logged = {"train/loss": loss, "train/cross_entropy": terms.cross_entropy.mean()}
        if terms.discrepancy is not None:
            logged["train/discrepancy"] = terms.discrepancy.float()
        self.log_dict(logged, batch_size=len(x))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._judge(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        raise ValueError("A denoiser is judged in a defence, with the recipes in configs/eval.")

    def _judge(self, batch: Batch, stage: str) -> None:
        x, y, index = batch
        noise = NoiseStream(self.seed, index).fork("validation")
        attacked = self.adversarial_of(batch, noise)
        terms = self.denoiser_loss.terms(self.denoiser, self.classifier, self.kernel, x, attacked, y, noise)
        self.accuracy(terms.logits, y)
        self.log(f"{stage}/loss", self.denoiser_loss.total(terms), batch_size=len(x), sync_dist=True)
        self.log(f"{stage}/cross_entropy", terms.cross_entropy.mean(), batch_size=len(x), sync_dist=True)
        self.log(f"{stage}/accuracy", self.accuracy, on_step=False, on_epoch=True, prog_bar=True)

    def configure_optimizers(self) -> Any:
        return self.optimisation.configured(self.denoiser.parameters(), self.trainer)
