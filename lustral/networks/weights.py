"""Weights files from which a network can be rebuilt: safetensors, with the architecture in the metadata.

The metadata names a builder from the closed list of `lustral.networks.builders` and its arguments, never a class path,
so that opening a file cannot run foreign code.
"""

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from lustral.describe import arguments
from lustral.diffusion import Denoiser
from lustral.diffusion.schedules import ScheduleName
from lustral.networks.builders import builders
from lustral.networks.classifier import Classifier
from lustral.tensor_files import read_tensors, write_tensors

_KEY = "lustral"
_SCHEMA = 1


def architecture(network: nn.Module) -> dict[str, Any]:
    """The name of the builder and the arguments from which ``network`` can be rebuilt, as plain data.

    A denoiser's ``schedule_type`` and ``labels`` are left out: how the network is used is the user's choice.
    """
    plain = json.loads(
        json.dumps(arguments(network, ("weights", "schedule_type", "labels")))
    )  # tuples become lists, as when read from a file
    return {"builder": type(network).__name__, "arguments": plain}


def save_network(network: nn.Module, path: str | Path, notes: dict[str, str] | None = None) -> Path:
    """Write ``network``'s weights and architecture to ``path``, atomically.

    Args:
        network: a network whose class a weights file may name (see `announced`).
        path: the file.
        notes: further facts to store (the recipe, the training step, a source's licence).

    Raises:
        OSError: if the file cannot be written.
    """
    record = {"schema": _SCHEMA, **architecture(network), "notes": notes or {}}
    return write_tensors(path, network.state_dict(), _KEY, record)


def read_weights(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata record and the state of a weights file.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is truncated, is no Lustral weights file, is of a newer version, or holds NaN or Inf.
    """
    record, _ = _header(path)
    return record, read_tensors(path)


def _header(path: str | Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """The metadata record of a weights file and the shapes of its tensors, without reading the tensors."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no weights file {path} (looked in {Path.cwd()}): train it with the recipe of the same name "
            "in configs/train, import a published one (python cli.py import --help), or name another with the "
            "`weights` option."
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  (no dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}): copy or train it again.") from error
    if _KEY not in metadata:
        raise ValueError(f"{path} does not say which network it belongs to: it was not written by Lustral; import it.")
    try:
        record = json.loads(metadata[_KEY])
        schema, builder, given = record["schema"], record["builder"], record["arguments"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} does not say in full which network it belongs to ({error!r}): copy, train or import it again."
        ) from error
    if schema != _SCHEMA:
        raise ValueError(
            f"{path} has schema {schema!r}, and this version of Lustral reads schema {_SCHEMA}: use the version that "
            "wrote it, or train or import it again."
        )
    if not isinstance(builder, str) or not isinstance(given, dict):
        raise ValueError(f"{path} names no network and its arguments: copy, train or import it again.")
    return record, shapes


def read_notes(path: str | Path) -> dict[str, str]:
    """The notes that `save_network` stored in a weights file; its tensors are not read."""
    with safe_open(Path(path).expanduser(), framework="pt") as file:
        return json.loads((file.metadata() or {})[_KEY])["notes"]


def load_into(network: nn.Module, path: str | Path | None) -> None:
    """Load a weights file into the network that it was written for; None leaves the network unchanged.

    Raises:
        ValueError: if the file belongs to another network; the message says what differs.
    """
    if path is None:
        return
    record, shapes = _header(path)
    _check_same(record, network, path)
    _check_shapes(network, shapes, path)
    _load_state(network, path)


def _check_same(record: dict[str, Any], network: nn.Module, path: str | Path) -> None:
    """Refuse a metadata record that describes another network. An argument that files did not have when this one was
    written has its default there."""
    here = architecture(network)
    if record["builder"] != here["builder"]:
        raise ValueError(f"{path} holds the weights of a {record['builder']}, not of a {here['builder']}.")
    parameters = inspect.signature(type(network)).parameters
    later = {name: parameters[name].default for name in here["arguments"].keys() - record["arguments"].keys()}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in later.items()}
    there = plain | record["arguments"]
    differing = [
        f"{name} = {there.get(name)} there and {here['arguments'].get(name)} here"
        for name in sorted({*there, *here["arguments"]})
        if there.get(name) != here["arguments"].get(name)
    ]
    if differing:
        raise ValueError(f"{path} holds the weights of another {here['builder']}: {'; '.join(differing)}.")


_FREE_OF_FLOW = ("preconditioning", "sigma_min", "sigma_max", "dropout")
"""What a consistency function and the diffusion model it starts from may differ in."""


def load_flow(network: Denoiser, path: str | Path) -> None:
    """Load a diffusion model's weights into a consistency function of the same network, from which its training starts.

    Both networks answer about the same at equal levels, since EDM's scales and labels differ from the consistency
    model's near sigma_min only.

    Raises:
        ValueError: if the file belongs to another network, or to one with other scales and labels.
    """
    record, shapes = _header(path)
    here, given = architecture(network), record["arguments"]
    if given.get("preconditioning") not in ("edm", "consistency"):
        raise ValueError(
            f"{path} holds a network with preconditioning {given.get('preconditioning')}, from which no consistency "
            "function can start: train one with preconditioning edm and EDMLoss."
        )
    alike = {name: here["arguments"][name] for name in _FREE_OF_FLOW if name in here["arguments"]}
    _check_same({**record, "arguments": {**given, **alike}}, network, path)
    _check_shapes(network, shapes, path)
    _load_state(network, path)


def load_network(weights: str | Path, **choices: Any) -> nn.Module:
    """Rebuild the network of a weights file; ``choices`` are further arguments, on which the weights do not depend."""
    record, shapes = _header(weights)
    known = builders()
    if record["builder"] not in known:
        raise ValueError(f"{weights} names the network {record['builder']!r}; known are {', '.join(sorted(known))}.")
    # First on the meta device, since a small file could name a network of any size.
    # Somewhat more than twice as many tensors as the file has are allowed, since timm replaces heads while building.
    with torch.device("meta"), _at_most(2 * len(shapes) + 100):
        outline = _built(record, weights, choices)
    _check_shapes(outline, shapes, weights)
    network = _built(record, weights, choices)
    _load_state(network, weights)
    network.weights = str(weights)  # type: ignore[assignment]
    return network


def _built(record: dict[str, Any], path: str | Path, choices: dict[str, Any]) -> nn.Module:
    """The network that a metadata record describes, with random weights."""
    builder = record["builder"]
    try:
        if "weights" in record["arguments"]:
            raise TypeError("weights of their own")
        return builders()[builder](**record["arguments"], **choices)
    except Exception as error:  # the arguments may be anything, so any error may follow
        why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"{path} names arguments that a {builder} does not have or cannot take ({why}): copy, train or import it "
            "again."
        ) from error


@contextmanager
def _at_most(number: int) -> Iterator[None]:
    """In this context, building networks fails after more than ``number`` parameter tensors."""
    left = number

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError("it would have more tensors than the file")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def load_classifier(weights: str) -> Classifier:
    """Rebuild the classifier of a weights file (use as a ``class_path``)."""
    return _of_kind(load_network(weights), Classifier, weights)


def load_denoiser(weights: str, schedule_type: None | ScheduleName = None) -> Denoiser:
    """Rebuild the denoiser of a weights file (use as a ``class_path``).

    Args:
        weights: the file.
        schedule_type: the diffusion process on which the denoiser is used; None is the one it was trained on.
    """
    choices = {} if schedule_type is None else {"schedule_type": schedule_type}
    return _of_kind(load_network(weights, **choices), Denoiser, weights)


def _of_kind(network: nn.Module, kind: type[Any], weights: str) -> Any:
    if not isinstance(network, kind):
        raise ValueError(f"{weights} holds a {type(network).__name__}, which is no {kind.__name__}.")
    return network


def _check_shapes(network: nn.Module, shapes: dict[str, tuple[int, ...]], path: str | Path) -> None:
    expected = network.state_dict()
    missing, unknown = sorted(expected.keys() - shapes.keys()), sorted(shapes.keys() - expected.keys())
    reshaped = [name for name in expected.keys() & shapes.keys() if tuple(expected[name].shape) != shapes[name]]
    if missing or unknown or reshaped:
        raise ValueError(
            f"{path} does not fit {type(network).__name__}: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}, {len(reshaped)} of another shape {sorted(reshaped)[:3]}."
        )


def _load_state(network: nn.Module, path: str | Path) -> None:
    with torch.no_grad():
        network.load_state_dict(read_tensors(path), strict=True)
