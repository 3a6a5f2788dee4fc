"""Files of ``flax.serialization.to_bytes``, read without JAX: msgpack, arrays as extension 1 (shape, type, bytes)."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import torch
from torch import Tensor

from lustral.networks.importing.reading import existing

_ARRAY, _CHUNKED = 1, "__msgpack_chunked_array__"


class _Packed:
    """An array that is unpacked only if needed: a checkpoint holds four times as much as is used."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def unpack(self) -> Tensor:
        shape, name, buffer = msgpack.unpackb(self.content, raw=True)
        dtype = getattr(torch, name.decode(), None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"an array of type {name.decode()}")
        flat = torch.frombuffer(bytearray(buffer), dtype=dtype) if buffer else torch.empty(0, dtype=dtype)
        if flat.numel() != math.prod(shape):
            raise ValueError(f"an array of {flat.numel()} numbers for the shape {tuple(shape)}")
        return flat.reshape(shape)


def _extension(code: int, content: bytes) -> Any:
    return _Packed(content) if code == _ARRAY else None


def read_flax(path: str | Path, entry: str) -> dict[str, Tensor]:
    """The arrays under ``entry`` in a file, by their path, such as ``Dense_0.kernel``.

    Raises:
        ValueError: if the file is truncated, is no flax file, or has no such entry.
    """
    path = existing(path)
    try:
        content = msgpack.unpackb(path.read_bytes(), ext_hook=_extension, raw=False)
    except Exception as error:  # msgpack raises ValueError and errors of its own, some without a message
        why = str(error) or type(error).__name__
        raise ValueError(f"{path} is cut short or no checkpoint of flax ({why}): copy or download it again.") from error
    tree = content.get(entry) if isinstance(content, Mapping) else None
    if not isinstance(tree, Mapping) or not tree:
        has = f"{', '.join(map(str, content))}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise ValueError(f"{path} has no arrays under {entry!r} (it holds {has}): check --format.")
    try:
        return _flat(tree, "")
    except (ValueError, TypeError, RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged, or not read here ({error}): copy or download it again.") from error


def _flat(tree: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, item in tree.items():
        if isinstance(item, Mapping) and _CHUNKED in item:
            raise ValueError(f"{prefix}{name} has more than 2**30 bytes")
        if isinstance(item, Mapping):
            found |= _flat(item, f"{prefix}{name}.")
        elif isinstance(item, _Packed):
            found[f"{prefix}{name}"] = item.unpack()
        else:
            raise ValueError(f"{prefix}{name} is a {type(item).__name__}")
    return found
