"""An optimiser and a schedule of the learning rate, as recipes name them, for Lightning."""

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.cli import ReduceLROnPlateau as MonitoredPlateau
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lustral.training import SizedSchedule

Interval = Literal["step", "epoch"]


class Optimisation:
    """Makes the optimiser of a training and what moves its learning rate.

    Both are tried on a number at once, so that settings which cannot work are told before any data are read.

    Args:
        optimizer: parameters to optimiser.
        lr_scheduler: optimiser to schedule.
        lr_interval: "step" or "epoch": after what the schedule takes a step.

    Raises:
        ValueError: if a setting is out of range.
    """

    def __init__(self, optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable, lr_interval: Interval) -> None:
        self.optimizer, self.lr_scheduler, self.lr_interval = optimizer, lr_scheduler, lr_interval
        if lr_interval not in ("step", "epoch"):
            raise ValueError(f"model.lr_interval is {lr_interval!r}; it may be step or epoch.")
        made = _tried("model.optimizer", optimizer, [nn.Parameter(torch.zeros(1))])
        for group in made.param_groups:
            if not group["lr"] > 0:
                raise ValueError(f"model.optimizer.lr is {group['lr']}; it must be positive.")
        schedule = _tried("model.lr_scheduler", lr_scheduler, made)
        name = type(schedule).__name__
        if isinstance(schedule, SizedSchedule) and lr_interval == "epoch":
            raise ValueError(f"{name} takes a step after each batch: set model.lr_interval to step.")
        if isinstance(schedule, ReduceLROnPlateau) and lr_interval == "step":
            raise ValueError(f"{name} looks at what is measured once an epoch: set model.lr_interval to epoch.")
        if isinstance(schedule, ReduceLROnPlateau) and not isinstance(schedule, MonitoredPlateau):
            raise ValueError(
                f"{name} of torch does not say what it looks at: take lightning.pytorch.cli.ReduceLROnPlateau for "
                "model.lr_scheduler, and its option monitor."
            )

    def configured(self, parameters: Iterable[nn.Parameter], trainer: Trainer) -> Any:
        """What `LightningModule.configure_optimizers` returns for those ``parameters`` that are trained."""
        made = self.optimizer([parameter for parameter in parameters if parameter.requires_grad])
        schedule = self.lr_scheduler(made)
        told: dict[str, Any] = {"scheduler": schedule, "interval": self.lr_interval}
        if isinstance(schedule, SizedSchedule):
            schedule.begin(_num_steps(trainer, type(schedule).__name__))
        if isinstance(schedule, MonitoredPlateau):
            # There is nothing new to look at after an epoch without validation.
            told |= {"monitor": schedule.monitor, "frequency": trainer.check_val_every_n_epoch or 1}
        return {"optimizer": made, "lr_scheduler": told}


def _num_steps(trainer: Trainer, name: str) -> int:
    steps = trainer.estimated_stepping_batches
    if math.isinf(steps):
        raise ValueError(f"{name} must know how long the training is: set trainer.max_epochs or trainer.max_steps.")
    return int(steps)


def _tried(option: str, make: Any, given: Any) -> Any:
    try:
        return make(given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{option}: {str(error).rstrip('.')}; change its options.") from error
