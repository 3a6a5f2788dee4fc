"""Files of named tensors with facts about them: safetensors, written atomically, read without running anything."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(path: str | Path, state: Mapping[str, Tensor], key: str, record: Mapping[str, Any]) -> Path:
    """Write tensors, and ``record`` (plain data) under ``key`` in the metadata, to ``path``, atomically.

    Raises:
        OSError: if the file cannot be written.
    """
    path = Path(path).expanduser()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(b"")
        mode = partial.stat().st_mode  # by the umask; safetensors makes files that only their owner may read
        save_file(tensors, partial, metadata={key: json.dumps(record)})
        partial.chmod(mode)
        partial.replace(path)
    except (SafetensorError, OSError) as error:
        with suppress(OSError):
            partial.unlink()
        raise OSError(
            f"The weights file {path} cannot be written ({error}): free or unlock its folder, or choose another."
        ) from error
    return path


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file that `write_tensors` wrote.

    Raises:
        ValueError: if it is truncated or no safetensors file, or holds NaN or Inf.
    """
    try:
        with safe_open(Path(path).expanduser(), framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}): copy or train it again.") from error
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise ValueError(f"{path} holds NaN or Inf in {bad[0]} ({len(bad)} tensors in all): train it again.")
    return state


def read_record(path: str | Path, key: str, kind: str) -> dict[str, Any]:
    """The record of a file that `write_tensors` wrote with this ``key``; its tensors are not read.

    Args:
        path: the file.
        key: where the record stands in the metadata.
        kind: what the file should hold, for the messages: "kernel", "reference" ...

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or holds something else.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no {kind} file {path} (looked in {Path.cwd()}): make it, or name another.")
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})[key])
    except (SafetensorError, OSError, ValueError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged or holds no {kind} ({error!r}): make it again, or name another."
        ) from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} is damaged: its record is no mapping; make the {kind} again.")
    return record
