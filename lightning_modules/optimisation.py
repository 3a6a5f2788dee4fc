"""The optimiser and the learning-rate schedule that a recipe chooses, in Lightning's form."""

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
    """Makes the optimiser and the learning-rate schedule of a training.

    Both are tried on a single parameter at construction, so that wrong settings are reported before any data are read.

    Args:
        optimizer: makes an optimiser from parameters.
        lr_scheduler: makes a schedule from an optimiser.
        lr_interval: whether the schedule advances after every "step" (of the optimiser) or every "epoch".

    Raises:
        ValueError: if a setting is out of range, or the schedule does not go with ``lr_interval``.
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
        """The return value of `LightningModule.configure_optimizers`, for those ``parameters`` that require gradients.

        Raises:
            ValueError: if the schedule needs the number of training steps, and it is unlimited.
        """
        made = self.optimizer([parameter for parameter in parameters if parameter.requires_grad])
        schedule = self.lr_scheduler(made)
        told: dict[str, Any] = {"scheduler": schedule, "interval": self.lr_interval}
        if isinstance(schedule, SizedSchedule):
            schedule.begin(num_steps(trainer, type(schedule).__name__))
        if isinstance(schedule, MonitoredPlateau):
            # The monitored metric is new only after an epoch with validation.
            told |= {"monitor": schedule.monitor, "frequency": trainer.check_val_every_n_epoch or 1}
        return {"optimizer": made, "lr_scheduler": told}


def num_steps(trainer: Trainer, name: str) -> int:
    """How many steps the optimiser takes in the whole training, which ``name`` must know.

    Raises:
        ValueError: if it is unlimited.
    """
    steps = trainer.estimated_stepping_batches
    if math.isinf(steps):
        raise ValueError(f"{name} must know how long the training is: set trainer.max_epochs or trainer.max_steps.")
    return int(steps)


def _tried(option: str, make: Any, given: Any) -> Any:
    try:
        return make(given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{option}: {str(error).rstrip('.')}; change its options.") from error
