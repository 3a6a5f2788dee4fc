"""The formats that `python cli.py import` knows."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Format:
    """One kind of published file.

    Attributes:
        name: the value of ``--format``.
        network: the network in the file, in a few words.
        file: the name of the published file.
        published: where its authors publish it.
        licence: licence of the published weights.
        load: ``load(path, **options)``: the network with the file's weights. Its keyword-only parameters are the
            options of ``--set``, which cannot be inferred from the tensors.
    """

    name: str
    network: str
    file: str
    published: str
    licence: str
    load: Callable[..., nn.Module]
