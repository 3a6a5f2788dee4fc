"""Checks that data, networks and checkpoints fit together, before anything runs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def check_fit(datamodule: Any, networks: Iterable[tuple[str, nn.Module]]) -> None:
    """Refuse networks whose number of classes or image shape differs from that of the data.

    Args:
        datamodule: anything with ``num_classes``, ``channels`` and ``image_size``; None checks nothing (loaders
            were passed to the Trainer from Python).
        networks: (name for the message, network) pairs.

    Raises:
        ValueError: if a network differs.
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


def check_checkpoint(module: nn.Module, path: str | None, resumes: bool) -> None:
    """Refuse a --ckpt_path that is no checkpoint, or the checkpoint of another network.

    Args:
        module: the module that the checkpoint is loaded into.
        path: the file; None, a URL or one of Lightning's words ("last", "best", "hpc") is left to Lightning.
        resumes: whether a training is resumed, which needs more than the weights.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is no checkpoint of Lightning, is damaged, or does not fit the module.
    """
    if path is None or path in ("last", "best", "hpc") or "://" in path:
        return
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"There is no checkpoint {path!r} (looked in {Path.cwd()}): name one of a training's checkpoints/ folder "
            "with --ckpt_path."
        )
    remedy = "name one of a training's checkpoints/ folder with --ckpt_path, or copy it again"
    try:
        content = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # damaged files raise errors of many types; torch's text advises to load them unsafely
        raise ValueError(f"{path} is damaged or no checkpoint ({type(error).__name__}): {remedy}.") from error
    needed = ["state_dict", *(["optimizer_states", "lr_schedulers", "epoch", "global_step"] if resumes else [])]
    lacking = [key for key in needed if not isinstance(content, dict) or key not in content]
    if lacking or not isinstance(content["state_dict"], dict):
        raise ValueError(f"{path} is no checkpoint of a training (it lacks {', '.join(lacking)}): {remedy}.")
    here, there = module.state_dict(), content["state_dict"]
    missing, unknown = sorted(here.keys() - there.keys()), sorted(map(str, there.keys() - here.keys()))
    shared = (name for name in here if name in there)
    reshaped = [n for n in shared if not isinstance(there[n], Tensor) or there[n].shape != here[n].shape]
    if missing or unknown or reshaped:
        raise ValueError(
            f"{path} is the checkpoint of another network: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}, {len(reshaped)} of another shape {reshaped[:3]}; name one that "
            "this recipe wrote."
        )
