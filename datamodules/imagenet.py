"""ImageNet (ILSVRC 2012) and subsets of its classes, from folders of images."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

from datamodules.base import ImageDataModule, Split, TestOn
from datamodules.imagefiles import FileSource
from datamodules.subsets import SHIPPED
from datamodules.synsets import read_synsets, split_folders, synset_folders

LISTS = {"imagenet100": SHIPPED / "imagenet100_cmc.txt", "imagenet30": SHIPPED / "imagenet30.txt"}
SITE = "https://image-net.org/download"


class ImageNet(ImageDataModule):
    """Colour images in folders named by their synsets; the test split is ImageNet's validation split.

    Two layouts are read: ``root/train/<synset>/*.JPEG`` with ``root/val/<synset>/*.JPEG``, and that of the
    public ImageNet-100 archive, ``root/train.X1`` ... ``root/train.X4`` with ``root/val.X``.

    A label is the place of the image's synset among the sorted synsets of the subset; with all 1,000 classes it
    is the usual label. ``index`` is the position among the subset's images of the split, sorted by synset and file
    name.

    A test image is resized (bilinear, antialiased) so that its shorter side is ``resize``, and its central
    ``image_size`` square is cropped. In training, a random crop is resized to that square, and half of the images
    are mirrored.

    Args:
        root: folder that holds the splits.
        subset: "imagenet100" (Tian et al. 2020), "imagenet30" (Hendrycks et al. 2019), or the path of a list
            with one ``n01440764 name`` per line; None: all synsets in the validation split (those of the public
            ImageNet-100 archive are not the classes of "imagenet100").
        image_size: side of an image in pixels, >= 1.
        resize: the shorter side before the crop, >= image_size; None: 8/7 of ``image_size`` (256 for 224).
        batch_size: images per batch and process, >= 1.
        num_workers: worker processes that load images, >= 0; 0 loads them in the main process.
        augment: random crops and mirror images in training; without, training images are treated as test images.
        num_val: images taken away from the training split for validation, >= 1.
        num_test: test only this many images, the first of the test set; None: all of them. The split is sorted
            by class, so the first N of all images are few classes: choose a ``test_subset``.
        test_subset: an index file with positions in the test split; None: all of it.
        test_on: "test" or "validation", the part that is tested.
        seed: of the shuffling and the augmentation, >= 0.

    Raises:
        ValueError, FileNotFoundError: as for :class:`ImageDataModule`; for the list of synsets likewise.
    """

    channels = 3

    def __init__(
        self,
        root: str = "data/imagenet",
        subset: str | None = None,
        image_size: int = 224,
        resize: int | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        augment: bool = True,
        num_val: int = 1000,
        num_test: int | None = None,
        test_subset: str | None = None,
        test_on: TestOn = "test",
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, num_val, num_test, test_subset, test_on, seed)
        self._resize = round(image_size * 8 / 7) if resize is None else resize
        if image_size < 1 or self._resize < image_size:
            raise ValueError(
                f"data.image_size is {image_size} and data.resize {resize}: give 1 <= image_size <= resize."
            )
        self.root = root
        self.subset = subset
        self.image_size = image_size
        self.resize = resize
        self.augment = augment
        self.name = "imagenet" if subset is None else subset if subset in LISTS else "imagenet_subset"
        if subset is not None and subset not in LISTS and not Path(subset).expanduser().is_file():
            raise FileNotFoundError(
                f"data.subset is {subset!r}: that is neither {' nor '.join(LISTS)}, and there is no list of "
                f"synsets at {Path(subset).expanduser().absolute()}."
            )
        self._listed = None if subset is None else read_synsets(LISTS.get(subset, subset))

    @cached_property
    def _synsets(self) -> dict[str, str]:
        """The names of the classes by synset, sorted; without a list, the synsets are the folders of "val"."""
        if self._listed is not None:
            return self._listed
        return {synset: synset for synset in synset_folders(self._split_folders("val"))}

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self._synsets.values())

    def check(self, split: Split = "test") -> None:
        self._class_folders("train" if split == "train" else "val")

    def load_train(self) -> FileSource:
        return FileSource(self._class_folders("train"), self._resize, self.image_size)

    def load_test(self) -> FileSource:
        return FileSource(self._class_folders("val"), self._resize, self.image_size)

    def pixel_options(self) -> Mapping[str, object]:
        return {"resize": self._resize, "interpolation": "bilinear, antialiased", "crop": "center"}

    def _split_folders(self, split: Literal["train", "val"]) -> list[Path]:
        folders = split_folders(Path(self.root).expanduser(), split)
        root = Path(self.root).expanduser().absolute()
        if not folders:
            raise FileNotFoundError(
                f"ImageNet is missing: neither {split} nor {split}.X* found in {root}. Give --data.root the "
                f"folder that holds them; the images come from {SITE} (with an account), sorted into one "
                "folder a synset."
            )
        if not synset_folders(folders):
            raise FileNotFoundError(
                f"{folders[0].absolute()} holds no folder named by a synset, such as n01440764: sort the "
                "images into one folder a class (the official validation archive comes as one flat folder)."
            )
        return folders

    def _class_folders(self, split: Literal["train", "val"]) -> dict[str, list[Path]]:
        """The folders of each class of the subset, in the order of the labels."""
        splits = self._split_folders(split)
        found = synset_folders(splits)
        missing = [synset for synset in self._synsets if synset not in found]
        if missing:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise FileNotFoundError(
                f"{len(missing)} of the {len(self._synsets)} classes of {self.name} have no folder in "
                f"{', '.join(str(folder.absolute()) for folder in splits)}: {shown}. Get them from {SITE}, "
                "or choose another --data.subset."
            )
        return {synset: found[synset] for synset in self._synsets}
