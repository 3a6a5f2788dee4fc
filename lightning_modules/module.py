"""The interface between `cli.py` and the Lightning modules."""

from collections.abc import Mapping
from typing import Any, ClassVar

from lightning.pytorch import LightningModule


class LustralModule(LightningModule):
    """A module that declares which subcommands it supports. The defaults are those of a training module; `cli.py`
    treats a module of another class as a training module.

    Attributes:
        unsupported: the subcommands that it does not support (fit, validate, test, predict), with the error message.
        takes_checkpoint: whether a --ckpt_path is loaded into it.
        makes_card: whether ``test`` writes records from which a card is made.
        own_progress: whether it reports its progress itself, instead of Lightning's progress bar.
    """

    unsupported: ClassVar[Mapping[str, str]] = {}
    takes_checkpoint: ClassVar[bool] = True
    makes_card: ClassVar[bool] = False
    own_progress: ClassVar[bool] = False

    @classmethod
    def refuse(cls, subcommand: str, config: Any) -> None:
        """Refuse options that cannot work or would be misleading, before anything is built.

        Args:
            subcommand: fit, validate, test or predict.
            config: the parsed options: ``config.trainer``, ``config.model``, ``config.data``, ``config.ckpt_path`` ...

        Raises:
            ValueError: if an option is refused; the message says what to do instead.
        """
        if subcommand in cls.unsupported:
            raise ValueError(cls.unsupported[subcommand])
        if config.get("ckpt_path") and not cls.takes_checkpoint:
            raise ValueError(
                "--ckpt_path is for the recipes in configs/train: the networks of an evaluation name weights files, as "
                "in --model.classifier.weights."
            )
        trainer = config.trainer
        if subcommand == "predict" and (trainer.fast_dev_run or trainer.limit_predict_batches is not None):
            raise ValueError(
                "trainer.limit_predict_batches and trainer.fast_dev_run would leave out images without a word in the "
                "predictions: choose how many with --data.num_test."
            )

    def untrained(self: LightningModule) -> list[str]:
        """The parts that have random weights unless a checkpoint is loaded into them."""
        exported = getattr(self, "exported", None)
        return [type(exported).__name__] if getattr(exported, "weights", "") is None else []
