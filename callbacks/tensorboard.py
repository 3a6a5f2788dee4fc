"""A TensorBoard logger that writes no files before a run has been accepted in its folder."""

from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger


class DeferredTensorBoard(TensorBoardLogger):
    """A TensorBoard logger that ignores everything until ``opened`` is set.

    Lightning makes loggers open their files before anything else, even for a run that is then refused.
    """

    opened = False

    @property
    def experiment(self) -> Any:
        return super().experiment if self.opened else DummyLogger().experiment
