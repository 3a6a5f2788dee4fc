"""Do data and networks fit together? Asked before anything runs."""

from collections.abc import Iterable
from typing import Any

from torch import nn


def check_fit(datamodule: Any, networks: Iterable[tuple[str, nn.Module]]) -> None:
    """Refuse networks whose class count or image shape is not that of the data.

    Args:
        datamodule: anything with ``num_classes``, ``channels`` and ``image_size``; None checks nothing (loaders
            were handed to the Trainer from Python).
        networks: each with the name that the message should use.
    """
    if datamodule is None:
        return
    shape = (datamodule.channels, datamodule.image_size, datamodule.image_size)
    data = type(datamodule).__name__
    for name, network in networks:
        classes = getattr(network, "num_classes", None)
        if classes is not None and classes != datamodule.num_classes:
            raise ValueError(
                f"The {name} tells {classes} classes apart, but {data} has {datamodule.num_classes}: choose other "
                f"data, or a {name} with num_classes = {datamodule.num_classes}."
            )
        image_shape = getattr(network, "image_shape", None)
        if image_shape is not None and tuple(image_shape) != shape:
            raise ValueError(
                f"The {name} takes images of shape {tuple(image_shape)}, but {data} gives {shape} (C, H, W): set "
                f"data.image_size and data.channels, or choose another {name}."
            )
