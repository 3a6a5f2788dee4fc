"""Training of a consistency model."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_modules.denoising_training import DenoisingTraining, compile_network
from lightning_modules.optimisation import Interval, num_steps
from lustral.diffusion import ConsistencyLoss, Denoiser, Progress
from lustral.diffusion.consistency_schedules import FINISHED
from lustral.networks import load_flow
from lustral.noise import NoiseStream
from lustral.training import WarmupConstant


class ConsistencyTraining(DenoisingTraining):
    """A consistency function and the loss that trains it, from nothing, from a diffusion model, or by one.

    Levels, noise and dropout are keyed as in `DiffusionTraining`; both calls of a step drop the same units. Validation
    measures the loss as it is at the end of the training. The target network of those losses that keep one is part of
    checkpoints, but not of the weights file.

    Args:
        denoiser: the network, with preconditioning consistency; exported as ``weights.safetensors`` when training ends.
        loss: ConsistencyTrainingLoss (CT), ImprovedConsistencyTraining (iCT), EasyConsistencyTuning (ECT) or
            ConsistencyDistillation (CD).
        initial: weights file of a diffusion model from which training starts, the same network with preconditioning
            edm (or consistency); None starts from random weights.
        optimizer: any of torch.optim, or your own, with its options. RAdam is that of the published models.
        lr_scheduler: learning-rate schedule: lustral.training.WarmupConstant, WarmupCosine, or any of
            torch.optim.lr_scheduler.
        lr_interval: whether the schedule advances after every "step" (of the optimiser) or every "epoch".
        channels_last: keep images and weights in channels-last memory format, which speeds up convolutions in half
            precision on a GPU.
        compile: compile the network (`torch.compile`); weights and results keep their names.
        seed: of levels, noise and dropout.
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        "predict": "A consistency model has no classes to predict: look at its samples with `python cli.py test` and a "
        "second -c configs/quality/digits_consistency.yaml.",
    }

    def __init__(
        self,
        denoiser: Denoiser,
        loss: ConsistencyLoss,
        initial: None | str = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.RAdam(p, lr=1e-4),
        lr_scheduler: LRSchedulerCallable = lambda o: WarmupConstant(o, warmup=0.0),
        lr_interval: Interval = "step",
        channels_last: bool = False,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        self.consistency_loss = loss
        super().__init__(denoiser, loss, optimizer, lr_scheduler, lr_interval, channels_last, compile, seed)
        if initial is not None:
            load_flow(denoiser, initial)
        self.target = None
        if loss.target_decay(FINISHED) is not None:
            self.target = deepcopy(denoiser).requires_grad_(False)
            self.target.register_forward_pre_hook(self._drop_alike)
            if compile:
                compile_network(self.target)
        denoiser.register_forward_pre_hook(self._drop_alike)

    def _drop_alike(self, network: nn.Module, inputs: Any) -> None:
        """Before each call in training: all calls of a step drop the same units."""
        if network.training and self._trainer is not None:
            self.seed_dropout()

    @property
    def progress(self) -> Progress:
        """How far the training is; the end of it while measuring."""
        if not self.trainer.training:
            return FINISHED
        return Progress(self.global_step, num_steps(self.trainer, type(self.consistency_loss).__name__))

    def descended(self, x_0: Tensor, noise: NoiseStream) -> Tensor:
        return self.consistency_loss(self.denoiser, x_0, noise, self.progress, self.target)

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """A step, after which the target network follows: before any callback writes a checkpoint."""
        progress = self.progress
        super().optimizer_step(*args, **options)
        decay = self.consistency_loss.target_decay(progress)
        if self.target is not None and decay is not None:
            with torch.no_grad():
                for kept, moved in zip(self.target.parameters(), self.denoiser.parameters(), strict=True):
                    kept.lerp_(moved, 1.0 - decay)
