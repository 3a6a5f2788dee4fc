"""Opening foreign files without executing anything in them."""

import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_GLOBAL = re.compile(r"GLOBAL (\S+)")


def sha256(path: str | Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def existing(path: str | Path) -> Path:
    """``path`` as a `Path`, refused with an error unless it is a file that exists and is not empty."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path} (looked in {Path.cwd()}): name it with --source.")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty: copy or download it again.")
    return path


def read_torch(path: str | Path) -> Any:
    """The content of a file of ``torch.save``: tensors, numbers, strings, lists and dicts, and nothing executable.

    Raises:
        ValueError: if the file is truncated, is no torch file, or has anything else.
    """
    path = existing(path)
    _refuse_compressed(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the kind of the file: a wrong kind is reported by the errors here
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its message advises to load the file unsafely
        asked = _GLOBAL.search(str(error))
        if asked is None:
            raise ValueError(
                f"{path} is no file of torch.save, or holds more than tensors and plain containers, which is refused "
                "because it could run code: check --format, or copy or download it again."
            ) from error
        raise ValueError(
            f"{path} asks for more than tensors and plain containers (GLOBAL {asked[1]}), which is refused because it "
            "could run code: if you trust the file, save its state_dict alone and import that."
        ) from error
    except Exception as error:  # damaged files raise errors of many types
        raise ValueError(
            f"{path} is cut short or no file of torch.save ({_first_sentence(error)}): copy or download it again."
        ) from error


def _refuse_compressed(path: Path) -> None:
    """Refuse compressed files, which may unpack to any size; ``torch.save`` does not compress."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"{path} is cut short or no file of torch.save ({error}): copy or download it again."
        ) from error
    if unpacked > path.stat().st_size:
        raise ValueError(
            f"{path} would unpack to {unpacked:,} bytes, which no file of torch.save does: check --format, or copy or "
            "download it again."
        )


def tensors_of(value: Any, file: str) -> dict[str, Tensor]:
    """``value`` as named tensors; an error says what it is instead."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{file} holds a {type(value).__name__} where named tensors were expected: check --format.")
    if not value:
        raise ValueError(f"{file} holds no tensors: copy or download it again, or check --format.")
    strangers = [str(name) for name, item in value.items() if not isinstance(item, Tensor)]
    if strangers:
        raise ValueError(
            f"{file} holds other things than tensors where tensors were expected ({', '.join(strangers[:6])}): check "
            "--format."
        )
    blown = [str(name) for name, item in value.items() if not solid(item)]
    if blown:
        raise ValueError(
            f"{file} holds tensors of more numbers than are stored ({', '.join(blown[:6])}): save them contiguous, or "
            "download it again."
        )
    return {str(name): item for name, item in value.items()}


def solid(tensor: Tensor) -> bool:
    """Whether a tensor has memory for each of its elements: with a stride of zero, a few bytes look like gigabytes,
    which the first copy would allocate."""
    return (
        tensor.layout == torch.strided and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def without_prefix(tensors: Mapping[str, Tensor], prefix: str = "module.") -> dict[str, Tensor]:
    """``tensors`` without a prefix of their names, such as DataParallel's; unchanged unless all names have it."""
    if tensors and all(name.startswith(prefix) for name in tensors):
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def shape(tensors: Mapping[str, Tensor], name: str, dimensions: int, file: str) -> torch.Size:
    """The shape of the tensor ``name``, from which a size of the architecture is inferred; an error if it is missing or
    has another number of dimensions."""
    if name not in tensors or tensors[name].ndim != dimensions:
        found = f"it has shape {tuple(tensors[name].shape)}" if name in tensors else "there is none"
        raise ValueError(
            f"{file} should hold {name} with {dimensions} dimensions, but {found} (it holds "
            f"{', '.join(list(tensors)[:4])} ...): choose the right --format."
        )
    return tensors[name].shape


def count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """The number of different name components after ``prefix``: the blocks of a stage, the stages of a network."""
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def _first_sentence(error: BaseException) -> str:
    """The first sentence of torch's error message; later ones advise to load the file unsafely."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first.partition(". ")[0].rstrip(".")[:200]
