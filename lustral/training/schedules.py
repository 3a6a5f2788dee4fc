"""Learning rates as a function of the completed share of the training."""

import math
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class SizedSchedule(LRScheduler, ABC):
    """A schedule that depends on the number of training steps, which is not known when it is made from a recipe: the
    training loop passes it to `begin` before the first step. The schedule is stepped after each optimiser step.

    The number of steps is not saved in checkpoints: a training that is resumed with a larger number follows the
    schedule of the larger number.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.num_steps: int | None = None
        super().__init__(optimizer)

    @abstractmethod
    def factor(self, step: int, num_steps: int) -> float:
        """The learning rate of ``step`` (0 ... num_steps - 1), as a factor of the optimiser's base learning rate."""

    def begin(self, num_steps: int) -> None:
        """Set the number of steps, and the learning rate of the present step."""
        self.num_steps = num_steps
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def get_lr(self) -> list[float | Tensor]:
        if self.num_steps is None:
            if self.last_epoch > 0:
                raise ValueError(
                    f"{type(self).__name__} was not told how many steps the training takes: call begin(num_steps) "
                    "before the first one."
                )
            return list(self.base_lrs)
        factor = self.factor(self.last_epoch, self.num_steps)
        return [base * factor for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().state_dict().items() if name != "num_steps"}


class WarmupCosine(SizedSchedule):
    """The learning rate rises linearly to the optimiser's base value, and falls to 0 as a cosine (Loshchilov and Hutter
    2017).

    Args:
        optimizer: the optimiser whose learning rate is set.
        warmup: share of the steps over which it rises, in [0, 1].
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.05) -> None:
        self.warmup = _checked(warmup)
        super().__init__(optimizer)

    def factor(self, step: int, num_steps: int) -> float:
        rising = _rising(self.warmup, num_steps)
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, num_steps - rising)))


class WarmupConstant(SizedSchedule):
    """The learning rate rises linearly to the optimiser's base value and stays there, as in the training of published
    diffusion models.

    Args:
        optimizer: the optimiser whose learning rate is set.
        warmup: share of the steps over which it rises, in [0, 1].
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.05) -> None:
        self.warmup = _checked(warmup)
        super().__init__(optimizer)

    def factor(self, step: int, num_steps: int) -> float:
        return min(1.0, (step + 1) / _rising(self.warmup, num_steps))


def _checked(warmup: float) -> float:
    if not 0 <= warmup <= 1:
        raise ValueError(f"warmup is {warmup}; it is a share of all steps and lies in [0, 1].")
    return warmup


def _rising(warmup: float, num_steps: int) -> int:
    return max(1, round(warmup * num_steps))
