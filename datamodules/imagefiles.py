"""A split whose images are files, which are read, decoded and cropped at each access."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from datamodules.sources import ImageSource
from datamodules.transforms import random_flip, random_resized_crop, resize_center_crop, to_tensor

ENDINGS = (".jpeg", ".jpg", ".png")


class FileSource(ImageSource):
    """Image files in one or more folders per class; positions are sorted by (class, file name).

    Args:
        classes: the folders of each class, by its name. The label is the class's place in this mapping.
        resize: a test image is resized to this length of its shorter side in pixels ...
        size: ... and its central size x size pixels are cropped.

    Raises:
        FileNotFoundError: if a class has no image.
    """

    def __init__(self, classes: Mapping[str, list[Path]], resize: int, size: int) -> None:
        self.resize = resize
        self.size = size
        self.files: list[str] = []  # plain strings: a million Path objects are a gigabyte
        self.names: list[str] = []  # "<class>/<file>", the same wherever the folders are
        labels: list[int] = []
        for label, (name, folders) in enumerate(classes.items()):
            files = sorted((file, str(folder)) for folder in folders for file in _images(folder))
            if not files:
                raise FileNotFoundError(f"{name} has no image: looked for *{', *'.join(ENDINGS)} in {folders[0]}.")
            self.files += [os.path.join(folder, file) for file, folder in files]
            self.names += [f"{name}/{file}" for file, _ in files]
            labels += [label] * len(files)
        self.labels = np.asarray(labels, dtype=np.int64)

    def image(self, position: int) -> Tensor:
        return to_tensor(resize_center_crop(self._read(position), self.resize, self.size))

    def augmented(self, position: int, rng: np.random.Generator) -> Tensor:
        return random_flip(to_tensor(random_resized_crop(self._read(position), self.size, rng)), rng)

    def digest(self) -> str:
        """A hash of the files' names and sizes: hashing their content could take longer than the test itself."""
        content = hashlib.sha256()
        for name, file in zip(self.names, self.files, strict=True):
            content.update(f"{name} {os.path.getsize(file)}\n".encode())
        return content.hexdigest()

    def _read(self, position: int) -> Image.Image:
        file = self.files[position]
        try:
            with Image.open(file) as image:
                return image.convert("RGB")
        except Exception as error:  # no image, truncated, or a decompression bomb: errors of many types
            why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise ValueError(
                f"{file} cannot be read as an image ({why}): fetch it again, or move it out of the data."
            ) from error


def _images(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.name.lower().endswith(ENDINGS)]
