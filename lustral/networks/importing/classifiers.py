"""What the formats of classifiers share: nested state dicts, batch normalisation, and sizes told by the tensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path

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
    without DataParallel's prefix."""
    if path.suffix == ".safetensors":
        try:
            return load_file(existing(path))
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path} is damaged or no safetensors file ({error}): copy or download it again."
            ) from error
    value = read_torch(path)
    if isinstance(value, Mapping):
        value = next((value[nest] for nest in _NESTS if isinstance(value.get(nest), Mapping)), value)
    return without_prefix(tensors_of(value, path.name))


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


def shape(tensors: Mapping[str, Tensor], name: str, dimensions: int, file: str) -> torch.Size:
    """Of the tensor that tells a size of the architecture."""
    if name not in tensors or tensors[name].ndim != dimensions:
        found = f"it has shape {tuple(tensors[name].shape)}" if name in tensors else "there is none"
        raise ValueError(
            f"{file} should hold {name} with {dimensions} dimensions, but {found} (it holds "
            f"{', '.join(list(tensors)[:4])} ...): choose the right --format."
        )
    return tensors[name].shape


def count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many different parts of a name follow ``prefix``: the blocks of a stage, the stages of a network."""
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def per_channel(option: str, value: float | Sequence[float]) -> tuple[float, ...]:
    """An option of ``--set`` that is a number, or one for each channel."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not all(isinstance(v, (int, float)) for v in values):
        raise ValueError(
            f"--set {option} takes a number or one a channel, such as {option}=(0.5,0.5,0.5), not {value!r}."
        )
    return tuple(float(v) for v in values)  # type: ignore[arg-type]
