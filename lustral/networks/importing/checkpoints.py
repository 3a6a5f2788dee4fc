"""Checkpoints of whole trainings, which also hold the optimiser's state, options and more."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lustral.networks.importing.classifiers import read_state
from lustral.networks.importing.inert_torch import read_inert_torch
from lustral.networks.importing.reading import tensors_of, without_prefix

NESTS = ("state_dict", "model", "net", "state_dict_ema", "model_ema")
"""The keys under which checkpoints hold the tensors of their network."""


def read_checkpoint(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The named tensors of a torch or safetensors file, at top level or under one of `NESTS`, without DataParallel's
    prefix.

    Args:
        path: the file.
        key: the key under which they are; None: the only one of `NESTS` in the file, or the top level.

    Raises:
        ValueError: if the file is damaged, has no such key, or has several and none was chosen.
    """
    if path.suffix == ".safetensors":
        if key is not None:
            raise ValueError(f"{path.name} is a safetensors file, which has no parts: leave out --set key.")
        return read_state(path)
    value = read_inert_torch(path)
    nests = [name for name in NESTS if isinstance(value, Mapping) and isinstance(value.get(name), Mapping)]
    if key is not None and (not isinstance(value, Mapping) or not isinstance(value.get(key), Mapping)):
        raise ValueError(f"{path.name} holds no tensors below {key!r}; it has {', '.join(nests) or 'no such parts'}.")
    if key is None and len(nests) > 1:
        raise ValueError(
            f"{path.name} holds {' and '.join(nests)}, which may be the weights of the last step and their mean: "
            f"choose one with --set key={nests[-1]}."
        )
    chosen = key if key is not None else nests[0] if nests else None
    tensors = tensors_of(value if chosen is None else value[chosen], path.name)
    return without_prefix(tensors)
