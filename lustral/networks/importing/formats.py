"""The formats that `python cli.py import` knows."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Format:
    """One kind of published file.

    Attributes:
        name: as ``--format`` takes it.
        network: what the file holds, in a few words.
        file: the published file's name.
        published: where its authors publish it.
        licence: of the published weights.
        load: ``load(path, **options)``: the network with the file's weights. Its keyword-only parameters are the
            options of ``--set``: what the tensors alone do not tell.
    """

    name: str
    network: str
    file: str
    published: str
    licence: str
    load: Callable[..., nn.Module]
