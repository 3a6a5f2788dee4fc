"""What the front door's parser makes of words, without a trainer."""

from functools import cache
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_loader
from lightning.pytorch import LightningDataModule, LightningModule

import cli as front_door
from lustral.choices import resets


@cache
def _parser() -> ArgumentParser:
    set_loader("yaml", front_door._value)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("-c", "--config", action="config")
    parser.add_subclass_arguments(LightningModule, "model")
    parser.add_subclass_arguments(LightningDataModule, "data")
    return parser


def resolved(words: list[str]) -> dict[str, Any]:
    """The configuration that the front door's parser makes of words, without the trainer's part."""
    set_loader("yaml", front_door._value)
    return _plain(_parser().parse_args([*words, *resets(["test", *words])]))


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        return {name: _plain(inner) for name, inner in vars(value).items() if name != "__path__"}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
