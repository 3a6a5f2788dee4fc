"""What the front door asks of a module, so that it need not know which one it has."""

from collections.abc import Mapping
from typing import Any, ClassVar

from lightning.pytorch import LightningModule


class LustralModule(LightningModule):
    """A module that says for itself what it can be run for. Every default here is that of a training; a module that is
    no LustralModule is taken for one.

    Attributes:
        unsupported: the subcommands that it has nothing for (fit, validate, test, predict), with the sentence to say.
        takes_checkpoint: whether a --ckpt_path is loaded into it.
        makes_card: whether ``test`` leaves records behind that a card is made of.
        own_progress: whether it tells of its progress itself, in place of Lightning's bar.
    """

    unsupported: ClassVar[Mapping[str, str]] = {}
    takes_checkpoint: ClassVar[bool] = True
    makes_card: ClassVar[bool] = False
    own_progress: ClassVar[bool] = False

    @classmethod
    def refuse(cls, subcommand: str, config: Any) -> None:
        """Refuse what could not work, or would mean something else than it seems, before anything is built.

        Args:
            subcommand: fit, validate, test or predict.
            config: its parsed options: ``config.trainer``, ``config.model``, ``config.data``, ``config.ckpt_path`` ...

        Raises:
            ValueError: with what to do instead.
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
        """The parts whose weights are random, unless a checkpoint is loaded into them."""
        exported = getattr(self, "exported", None)
        return [type(exported).__name__] if getattr(exported, "weights", "") is None else []
