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
    """The named tensors of a file of torch (bare, or below ``state_dict``, ``net`` or ``model``) or of safetensors,
    without the prefixes that DataParallel (``module.``) and wrappers (``model.``) give to all of them."""
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
        tensors = bare  # a wrapper in DataParallel, or the other way round
    return tensors


def batch_norm(target: str, source: str, tensors: Mapping[str, Tensor]) -> list[Rule]:
    """One layer with its statistics."""
    rules = pairs(target, source, ("weight", "bias", "running_mean", "running_var"))
    return [*rules, counter(f"{target}.{COUNTER}", f"{source}.{COUNTER}", tensors)]


def counter(target: str, source: str, tensors: Mapping[str, Tensor]) -> Rule:
    """How many batches a layer has seen. Files older than torch 0.4.1 do not count: nothing here reads the number,
    and it is then zero in every layer."""
    if any(name.endswith(COUNTER) for name in tensors):
        return rule(target, source)
    return Rule((target,), (), lambda: torch.zeros((), dtype=torch.int64))
