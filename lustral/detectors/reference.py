"""Reference images that a detector compares with, and their identity."""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lustral.tensor_files import read_record, read_tensors, write_tensors

_KEY = "lustral_reference"
_SCHEMA = 1


class Reference:
    """Clean images, held out from every network that is trained.

    Args:
        images: (n, C, H, W) in [0, 1], n >= 2.
        index: (n,) their positions in the full split.
        made_by: where they are from, as plain data: the data set, its split.

    Raises:
        ValueError: if there are fewer than two images, or they are not finite or not in [0, 1].
    """

    def __init__(self, images: Tensor, index: Tensor, made_by: Mapping[str, Any]) -> None:
        if images.ndim != 4 or len(images) < 2 or len(images) != len(index):
            raise ValueError(
                f"A reference holds at least two images (n, C, H, W) and a position for each, not "
                f"{tuple(images.shape)} and {len(index)} positions."
            )
        low, high = (float(end) for end in images.aminmax())
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(f"Reference images lie in [{low:.4g}, {high:.4g}]; they must be in [0, 1]: divide by 255?")
        self.images, self.index, self.made_by = images.cpu(), index.cpu(), dict(made_by)

    @cached_property
    def sha256(self) -> str:
        """A hash of the images: equal for equal pixels in the same order."""
        content = self.images.contiguous().numpy()
        return hashlib.sha256(f"{content.shape} {content.dtype}".encode() + content.tobytes()).hexdigest()

    def described(self) -> dict[str, Any]:
        """What decides results: the images' hash and where they are from, not the path of a file."""
        return {"reference_sha256": self.sha256, "num_images": len(self.images), "made_by": self.made_by}

    def write(self, path: str | Path) -> Path:
        """Write the reference to a file, from which `StoredReference` reads it.

        Raises:
            OSError: if it cannot be written.
        """
        record = {"schema": _SCHEMA, "made_by": self.made_by}
        return write_tensors(path, {"images": self.images, "index": self.index}, _KEY, record)


class StoredReference(Reference):
    """A reference from a file (use as a ``class_path``).

    Args:
        file: ``reference.safetensors`` in the folder of a kernel's training (configs/train/..._mmd.yaml).
        num_images: only the first so many; None: all.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is damaged, of another schema, or has fewer images.
    """

    def __init__(self, file: str, num_images: None | int = None) -> None:
        self.file, self.num_images = file, num_images
        record = read_record(file, _KEY, "reference")
        state = read_tensors(file)
        if record.get("schema") != _SCHEMA or not {"images", "index"} <= state.keys():
            raise ValueError(f"{file} holds no reference of schema {_SCHEMA}: make it again.")
        available = len(state["images"])
        if num_images is not None and not 2 <= num_images <= available:
            raise ValueError(f"num_images is {num_images}, and {file} has {available}: give 2 to {available}, or null.")
        images, index = (state[name][:num_images] for name in ("images", "index"))
        super().__init__(images, index.to(torch.int64), record.get("made_by") or {})
