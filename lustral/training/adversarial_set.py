"""A stored set of adversarial images: made once, by several processes, and gone on with after an interruption."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SCHEMA = 1


class AdversarialSet:
    """Adversarial images of some positions of a data set's split, in a folder.

    ``set.json`` says how they were made, ``images.npy`` holds them as float32, and ``done.npy`` which of them are
    there. Images are read from and written to the disk, so the set may be larger than the memory; processes that share
    the folder may write different images at the same time.

    Args:
        folder: where it is kept.
        positions: the images' positions in the split, in any order, without repetition.
        shape: (C, H, W) of an image.
        made_by: what decides the images, as plain data: classifier, attack, threat, data, seed.
        create: make the files if they are not there; one process alone may do that.

    Raises:
        FileNotFoundError: if the files are not there, and ``create`` is false.
        ValueError: if the folder holds a set that was made otherwise, or is damaged.
    """

    def __init__(
        self,
        folder: str | Path,
        positions: Sequence[int],
        shape: Sequence[int],
        made_by: dict[str, Any],
        create: bool = True,
    ) -> None:
        self.folder = Path(folder).expanduser()
        self.positions = torch.tensor(sorted(positions), dtype=torch.int64)
        digest = hashlib.sha256(self.positions.numpy().tobytes()).hexdigest()
        record = {"schema": _SCHEMA, "shape": list(shape), "positions_sha256": digest, "made_by": made_by}
        record = json.loads(json.dumps(record))
        there = self.folder / "set.json"
        if not there.is_file() and create:
            self.folder.mkdir(parents=True, exist_ok=True)
            size = (len(self.positions), *shape)
            np.lib.format.open_memmap(self.folder / "images.npy", mode="w+", dtype=np.float32, shape=size).flush()
            np.lib.format.open_memmap(self.folder / "done.npy", mode="w+", dtype=np.uint8, shape=size[:1]).flush()
            partial = there.with_name("set.json.partial")
            partial.write_text(json.dumps(record))
            partial.replace(there)
        self._check(there, record)
        try:
            self._images = np.load(self.folder / "images.npy", mmap_mode="r+")
            self._done = np.load(self.folder / "done.npy", mmap_mode="r+")
        except (OSError, ValueError) as error:
            raise ValueError(f"The adversarial set {self.folder} is damaged ({error}): delete it.") from error
        if self._images.shape != (len(self.positions), *shape) or self._done.shape != self._images.shape[:1]:
            raise ValueError(f"The adversarial set {self.folder} is damaged (its arrays' shapes differ): delete it.")

    def _check(self, there: Path, record: dict[str, Any]) -> None:
        if not there.is_file():
            raise FileNotFoundError(f"There is no adversarial set in {self.folder}.")
        try:
            found = json.loads(there.read_text())
        except ValueError as error:
            raise ValueError(f"{there} is damaged ({error}): delete {self.folder}.") from error
        if not isinstance(found, dict) or not isinstance(found.get("made_by"), dict):
            raise ValueError(f"{there} is damaged (it describes no set): delete {self.folder}.")
        old, new = found["made_by"], record["made_by"]
        differing = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        differing += [name for name in ("schema", "shape", "positions_sha256") if found.get(name) != record[name]]
        if differing:
            raise ValueError(
                f"The adversarial set {self.folder} was made with another {', '.join(differing)}: delete it, or keep "
                "this one elsewhere (model.adversarial_folder)."
            )

    def missing(self) -> Tensor:
        """(n,) int64, the positions whose images are not there yet, ascending."""
        return self.positions[torch.from_numpy(self._done[:] == 0)]

    def write(self, positions: Tensor, images: Tensor) -> None:
        """Store ``images`` (n, C, H, W) of ``positions`` (n,)."""
        rows = self._rows(positions)
        self._images[rows] = images.detach().cpu().float().numpy()
        self._images.flush()
        self._done[rows] = 1  # only now: an interruption may not leave half an image that counts as done
        self._done.flush()

    def read(self, positions: Tensor) -> Tensor:
        """(n, C, H, W) float32 images of ``positions`` (n,), on their device.

        Raises:
            ValueError: if one is not there.
        """
        rows = self._rows(positions)
        if not self._done[rows].all():
            raise ValueError(f"The adversarial set {self.folder} lacks some of the images that are asked for.")
        return torch.from_numpy(self._images[rows]).to(positions.device)

    def _rows(self, positions: Tensor) -> np.ndarray:
        wanted = positions.cpu()
        rows = torch.searchsorted(self.positions, wanted).clamp_max(len(self.positions) - 1)
        if not torch.equal(self.positions[rows], wanted):
            raise ValueError(f"The adversarial set {self.folder} is of other images than those that are asked for.")
        return rows.numpy()
