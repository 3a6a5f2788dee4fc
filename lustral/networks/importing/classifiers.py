"""What the formats of classifiers share: nested state dicts and batch normalisation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lustral.networks.importing.reading import existing, read_torch, tensors_of, without_prefix
from lustral.networks.importing.rules import Rule, pairs, rule

_NESTS = ("state_dict", "net", "model")
COUNTER = "num_batches_tracked"


def read_state(path: Path) -> dict[str, Tensor]:
    """The named tensors of a torch file (at top level, or under ``state_dict``, ``net`` or ``model``) or a safetensors
    file, without the prefixes of DataParallel (``module.``) and wrappers (``model.``)."""
    if path.suffix == ".safetensors":
        try:
            value: Any = load_file(existing(path))
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path} is damaged or no safetensors file ({error}): copy or download it again."
            ) from error
    else:
        value = read_torch(path)
    if isinstance(value, Mapping):
        value = next((value[nest] for nest in _NESTS if isinstance(value.get(nest), Mapping)), value)
    tensors = tensors_of(value, path.name)
    while (bare := without_prefix(without_prefix(tensors), "model.")).keys() != tensors.keys():
        tensors = bare  # repeated, for a wrapper in DataParallel or DataParallel in a wrapper
    return tensors


def batch_norm(target: str, source: str, tensors: Mapping[str, Tensor]) -> list[Rule]:
    """The rules for one batch normalisation with its running statistics."""
    rules = pairs(target, source, ("weight", "bias", "running_mean", "running_var"))
    return [*rules, counter(f"{target}.{COUNTER}", f"{source}.{COUNTER}", tensors)]


def counter(target: str, source: str, tensors: Mapping[str, Tensor]) -> Rule:
    """The rule for the number of batches that a layer has seen. Files older than torch 0.4.1 lack it; it is then set to
    zero, as nothing here uses it."""
    if any(name.endswith(COUNTER) for name in tensors):
        return rule(target, source)
    return Rule((target,), (), lambda: torch.zeros((), dtype=torch.int64))
