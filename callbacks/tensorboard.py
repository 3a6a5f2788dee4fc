"""TensorBoard files that do not appear before a run has been accepted in its folder."""

from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger


class DeferredTensorBoard(TensorBoardLogger):
    """Lightning asks every logger for its files before anything else, even for a run that is refused a moment later.
    Until ``opened`` is set, this one passes over what it is told.
    """

    opened = False

    @property
    def experiment(self) -> Any:
        return super().experiment if self.opened else DummyLogger().experiment
