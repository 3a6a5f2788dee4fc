"""Weights files of kernels: what was trained, and which frozen network it was trained on."""

from pathlib import Path
from typing import Any

from torch import nn

from lustral.describe import arguments, describe
from lustral.tensor_files import read_record, read_tensors, write_tensors

_KEY = "lustral_kernel"
_SCHEMA = 1


def save_kernel(kernel: nn.Module, path: str | Path, notes: dict[str, str] | None = None) -> Path:
    """Write a kernel's trained tensors to ``path``, with a description of what it was trained on.

    The frozen network of its features is described by its architecture and a hash of its weights, and not stored.

    Raises:
        OSError: if the file cannot be written.
    """
    record = {"schema": _SCHEMA, **_identity(kernel), "notes": notes or {}}
    return write_tensors(path, kernel.state_dict(), _KEY, record)


def load_kernel_state(kernel: nn.Module, path: str | Path) -> None:
    """Load a file written by `save_kernel` into a kernel of the same kind, on the same features.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or belongs to another kernel; the message says what differs.
    """
    record, here = read_record(path, _KEY, "kernel"), _identity(kernel)
    if record.get("schema") != _SCHEMA:
        raise ValueError(
            f"{path} has schema {record.get('schema')!r}, and this version of Lustral reads schema {_SCHEMA}: train it "
            "again."
        )
    if record.get("features") != here["features"]:
        raise ValueError(
            f"{path} holds a kernel that was trained on other features than {_outline(here['features'])}, those of "
            f"{_outline(record.get('features'))}: name the weights file that its recipe named, or train one for these."
        )
    for name, value in here.items():
        if record.get(name) != value:
            raise ValueError(
                f"{path} holds a kernel with another {name}: {record.get(name)} there and {value} here; choose the "
                "same, or train a kernel for this one."
            )
    state, own = read_tensors(path), kernel.state_dict()
    if state.keys() != own.keys() or any(state[name].shape != tensor.shape for name, tensor in own.items()):
        raise ValueError(f"{path} does not fit {type(kernel).__name__}: it holds {sorted(state)}; train it again.")
    before = {name: tensor.clone() for name, tensor in own.items()}
    kernel.load_state_dict(state)
    numbers: dict[str, float] = getattr(kernel, "numbers", dict)()
    if wrong := [name for name, value in numbers.items() if not value > 0]:
        kernel.load_state_dict(before)
        raise ValueError(f"{path} holds a kernel whose {', '.join(wrong)} is not positive: train it again.")


def _identity(kernel: nn.Module) -> dict[str, Any]:
    """The class of a kernel, how its scalars are trained, and its features (as plain data, with a hash) or network."""
    given = arguments(kernel)
    network = given.get("network")
    shape = None if network is None else {"class": type(network).__name__, **describe(arguments(network, ("weights",)))}
    return {
        "kernel": type(kernel).__name__,
        "parametrisation": given.get("parametrisation"),
        "features": describe(given.get("features")),
        "network": shape,
    }


def _outline(described: Any) -> str:
    """A described network in a few words: its class, and the beginnings of the hashes of its weights."""
    if not isinstance(described, dict):
        return "no network"
    inner = [_outline(part) for part in described.values() if isinstance(part, dict)]
    digest = described.get("weights_sha256")
    own = str(described.get("class")) + (f" {digest[:8]}" if isinstance(digest, str) else "")
    return f"{own} ({', '.join(inner)})" if inner else own
