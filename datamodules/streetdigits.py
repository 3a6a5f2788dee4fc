"""Scenes of house numbers, rendered on the fly from real handwriting: a colour benchmark without a download."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from datamodules.base import ImageDataModule, Split, TestOn
from datamodules.keyed import keyed_generator
from datamodules.scenes import SIZE, Draws, Shapes, paint
from datamodules.sources import ImageSource
from datamodules.subsets import SHIPPED, read_indices

RECIPE = 2
"""Version of the rendering (`scenes`), to be increased with any change of a pixel."""

VALIDATION = 5000
"""Number of positions at the beginning of the training split that are reserved for validation, used or not."""


class StreetDigits(ImageDataModule):
    """House numbers: colour images of 32 x 32 pixels, ten classes, in any number; a substitute for SVHN.

    A scene shows one of scikit-learn's handwritten digits as if it were painted on a wall and photographed:
    placed by a random affine map, with random colours, texture, shadow, blur and noise, and often with
    neighbouring digits cut by the border. The label is the digit in the middle. Training scenes use the shapes of
    ``configs/subsets/digits_train.txt`` only, validation scenes those of ``digits_val.txt``, test scenes those of
    ``digits_test.txt``, so no writer is in two parts.

    Scene i of a split depends on nothing but the split and i, not on ``seed`` or the number of scenes. Every
    consecutive ten (0 to 9, 10 to 19 ...) have all ten labels. Positions 0..4999 of the training split are the
    validation scenes, of which the first ``num_val`` are used; the training scenes follow. Pixels are multiples of
    1/255, as in photographs. A scene takes about half a millisecond to render.

    Args:
        num_train: scenes to train on, >= 1.
        num_test_scenes: scenes in the full test split, >= 1.
        batch_size: images per batch and process, >= 1.
        num_workers: worker processes that make images, >= 0; 0 makes them in the main process.
        num_val: scenes to validate on, 1..5000.
        num_test: test only this many scenes, the first of the test set; None: all of them.
        test_subset: an index file with positions in the test split; None: all of it.
        test_on: "test" or "validation", the part that is tested.
        seed: of the shuffling, >= 0.

    Raises:
        ValueError, FileNotFoundError: as for :class:`ImageDataModule`; all of them at construction.
    """

    name = "streetdigits"
    channels = 3
    image_size = SIZE

    def __init__(
        self,
        num_train: int = 20000,
        num_test_scenes: int = 5000,
        batch_size: int = 64,
        num_workers: int = 0,
        num_val: int = 1000,
        num_test: int | None = None,
        test_subset: str | None = None,
        test_on: TestOn = "test",
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, num_val, num_test, test_subset, test_on, seed)
        for option, value in (("num_train", num_train), ("num_test_scenes", num_test_scenes)):
            if value < 1:
                raise ValueError(f"data.{option} is {value}; it must be an integer of at least 1.")
        if num_val > VALIDATION:
            raise ValueError(f"data.num_val is {num_val}, but streetdigits has {VALIDATION} validation scenes.")
        self.num_train = num_train
        self.num_test_scenes = num_test_scenes
        _ = self.test_indices  # the size is known, so a bad subset is reported before the data are made

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple("0123456789")

    def check(self, split: Split = "test") -> None:
        """Nothing to check: the shapes come with scikit-learn."""

    def load_train(self) -> "SceneSource":
        held_out = read_indices(SHIPPED / "digits_val.txt")
        kept = sorted(read_indices(SHIPPED / "digits_train.txt"))
        return SceneSource("train", [(VALIDATION, Shapes(held_out)), (self.num_train, Shapes(kept))])

    def load_test(self) -> "SceneSource":
        return SceneSource("test", [(self.num_test_scenes, Shapes(read_indices(SHIPPED / "digits_test.txt")))])

    def test_part(self) -> list[int]:
        return list(range(self.num_test_scenes))

    def split_train(self) -> tuple[list[int], list[int]]:
        return list(range(VALIDATION, VALIDATION + self.num_train)), list(range(self.num_val))

    def pixel_options(self) -> Mapping[str, object]:
        return {"recipe": RECIPE}


class SceneSource(ImageSource):
    """One full split of scenes, each rendered at access.

    Args:
        split: part of the key of every scene.
        pools: (number of scenes, shapes that they use) pairs, in the order of the positions; every number except
            the last is a multiple of ten.
    """

    def __init__(self, split: Split, pools: Sequence[tuple[int, Shapes]]) -> None:
        self.split = split
        self.pools = [shapes for _, shapes in pools]
        self.ends = np.cumsum([number for number, _ in pools])
        self.labels = balanced_labels(split, int(self.ends[-1]))

    def shapes(self, position: int) -> Shapes:
        """The shapes that the scene at ``position`` uses."""
        return self.pools[int(np.searchsorted(self.ends, position, side="right"))]

    def image(self, position: int) -> Tensor:
        draws = Draws(f"streetdigits {self.split} scene", position)
        return torch.from_numpy(paint(self.shapes(position), int(self.labels[position]), draws)).div(255)

    def augmented(self, position: int, rng: np.random.Generator) -> Tensor:
        """The image without augmentation: more scenes can always be rendered, and a mirrored digit is no digit."""
        return self.image(position)

    def digest(self) -> str:
        """A hash of all that determines the scenes, except their number, on which scene i does not depend."""
        content = hashlib.sha256(f"streetdigits {self.split} {RECIPE}".encode())
        for shapes in self.pools:
            content.update(np.asarray(shapes.positions, dtype=np.int64).data)
            content.update(np.ascontiguousarray(shapes.stored).data)
            content.update(shapes.labels.data)
        return content.hexdigest()


def balanced_labels(split: Split, length: int) -> np.ndarray:
    """(length,) int64: every consecutive ten are a permutation of 0..9, keyed by the split and their place."""
    blocks = [
        np.argsort(keyed_generator(f"streetdigits {split} labels", 0, 0, block).bit_generator.random_raw(10))
        for block in range(-(-length // 10))
    ]
    return np.concatenate(blocks)[:length].astype(np.int64)
