"""What all data modules share: the parts of a data set, their loaders, and the data's identity."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal, get_args

import torch
from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.samplers import DealtSampler, DisjointSampler, EpochSampler
from datamodules.sources import GroupedSamples, ImageSource, Samples
from datamodules.subsets import check_within, read_indices, stratified_order
from lustral.evaluation import Dealing

Split = Literal["train", "test"]
TestOn = Literal["test", "validation"]


class ImageDataModule(LightningDataModule, ABC):
    """Batches ``(image, label, index)`` for training, validation and test.

    ``image`` is float32 (B, C, H, W) in [0, 1], ``label`` int64 (B,), and ``index`` int64 (B,) the sample's
    position in its full split, whatever subset was chosen. The validation part is taken from the training split, and
    has positions in it; test and predict use the same images. For a Lightning module that judges groups, batches
    contain whole groups (see `test_dataloader`), and have ``replicate`` int64 (B,) as a fourth entry.

    A subclass declares its data (the attributes below), checks whether they are there (:meth:`check`) and reads
    them (:meth:`load_train`, :meth:`load_test`). Nothing is read before it is needed, and nothing draws from a
    global generator.

    Attributes:
        name: the data set's name, such as "digits".
        channels: C, the number of channels of an image.
        image_size: height and width of an image in pixels.
        augment: whether training images are augmented.

    Args:
        batch_size: images per batch and process, >= 1.
        num_workers: worker processes that load images, >= 0; 0 loads them in the main process.
        num_val: images taken away from the training split for validation, >= 1.
        num_test: test only this many images, the first of the test set; None: all of them.
        test_subset: an index file with the positions to test, in order (see ``configs/subsets``), relative to
            the working directory; None: the whole test part.
        test_on: "test", or "validation" to choose a defence's options without using test images: "test set" then
            means the validation part in everything said here, and positions are those of the training split.
        seed: of the shuffling and the augmentation, >= 0.

    Raises:
        ValueError: if a number is out of its range, or the index file is malformed.
        FileNotFoundError: if the index file does not exist.
    """

    name: str
    channels: int
    image_size: int
    augment: bool = False

    def __init__(
        self,
        batch_size: int,
        num_workers: int,
        num_val: int,
        num_test: int | None,
        test_subset: str | None,
        test_on: TestOn,
        seed: int,
    ) -> None:
        super().__init__()
        # With more processes than images, some have nothing to do, which is no error.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.batch_size = _at_least(1, batch_size, "batch_size")
        self.num_workers = _at_least(0, num_workers, "num_workers")
        self.num_val = _at_least(1, num_val, "num_val")
        self.num_test = None if num_test is None else _at_least(1, num_test, "num_test")
        self.test_subset = test_subset
        if test_on not in get_args(TestOn):
            raise ValueError(f"data.test_on is {test_on!r}; it may be {' or '.join(get_args(TestOn))}.")
        self.test_on: TestOn = test_on
        self.seed = _at_least(0, seed, "seed")
        self._subset = None if test_subset is None else read_indices(test_subset)
        if self._subset is not None:
            self._check_num_test(len(self._subset))

    # What a child says -----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """The name of each label, in the order of the labels."""

    @abstractmethod
    def check(self, split: Split = "test") -> None:
        """Check that the files of a split exist, without reading them.

        Raises:
            FileNotFoundError: if one is missing; the message says where it was expected and how to get it.
        """

    @abstractmethod
    def load_train(self) -> ImageSource:
        """The full training split."""

    @abstractmethod
    def load_test(self) -> ImageSource:
        """The full test split."""

    def pixel_options(self) -> Mapping[str, object]:
        """The options that change the pixels of a test image; part of :meth:`fingerprint`."""
        return {}

    def test_part(self) -> list[int]:
        """The positions in the full split that may be tested."""
        return list(range(len(self.test_source)))

    def split_train(self) -> tuple[list[int], list[int]]:
        """The positions to train on and those to validate on; the latter come first in a fixed stratified order.

        Raises:
            ValueError: if ``num_val`` leaves nothing to train on.
        """
        order = stratified_order(self.train_source.labels)
        if self.num_val >= len(order):
            raise ValueError(
                f"data.num_val is {self.num_val}, but the training split of {self.name} has {len(order)} "
                "images, and some must be left to train on."
            )
        return sorted(order[self.num_val :]), order[: self.num_val]

    # What everybody asks ---------------------------------------------------------------------------------

    @property
    def num_classes(self) -> int:
        """Number of different labels."""
        return len(self.class_names)

    @cached_property
    def train_source(self) -> ImageSource:
        """The full training split, read at first use."""
        self.check("train")
        return self.load_train()

    @cached_property
    def test_source(self) -> ImageSource:
        """The full split that is tested, read at first use."""
        if self.test_on == "validation":
            return self.train_source
        self.check("test")
        return self.load_test()

    @cached_property
    def train_parts(self) -> tuple[list[int], list[int]]:
        """Positions in the full training split to train on, and to validate on: disjoint and fixed."""
        return self.split_train()

    @property
    def test_set_indices(self) -> list[int]:
        """Positions in the full split of the whole test set (the chosen subset), in the order of the test.

        Raises:
            ValueError: if the subset has positions outside the test part.
        """
        part = self.test_part() if self.test_on == "test" else self.train_parts[1]
        if self._subset is None:
            return part
        check_within(self._subset, part, str(self.test_subset), f"{self.test_on} part of {self.name}")
        return list(self._subset)

    @property
    def test_indices(self) -> list[int]:
        """Positions in the full split of the images that are tested: the first ``num_test`` of the test set.

        Raises:
            ValueError: if there are fewer than ``num_test``.
        """
        indices = self.test_set_indices
        self._check_num_test(len(indices))
        return indices[: self.num_test]

    def test_images(self, positions: Sequence[int]) -> Tensor:
        """(n, C, H, W) in [0, 1]: the images at ``positions`` (n,) of the tested split, in any process."""
        samples = Samples(self.test_source, list(positions))
        return torch.stack([samples[i][0] for i in range(len(samples))])

    def train_images(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(n, C, H, W) in [0, 1] and (n,) labels at ``positions`` (n,) of the training split, not augmented."""
        samples = Samples(self.train_source, list(positions))
        found = [samples[i] for i in range(len(samples))]
        return torch.stack([image for image, _, _ in found]), torch.tensor([label for _, label, _ in found])

    def train_fingerprint(self) -> dict[str, object]:
        """The identity of the training split's images, as those of a test (see :meth:`fingerprint`)."""
        return self._identity("train", self.train_source)

    def fingerprint(self) -> dict[str, object]:
        """The identity of the test data: equal for equal pixels and labels, wherever the files are.

        It does not depend on the subset, ``num_test``, batch size or workers. An image has the same index with all
        of these, so results on a part of the images can be joined with results on all of them.
        """
        return self._identity(self.test_on, self.test_source)

    def _identity(self, split: str, source: ImageSource) -> dict[str, object]:
        return {
            "dataset": self.name,
            "split": split,
            "num_classes": self.num_classes,
            "channels": self.channels,
            "image_size": self.image_size,
            "pixels": dict(self.pixel_options()),
            "content": source.digest(),
        }

    # What Lightning calls --------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Check that the data that the trainer needs exist; a subclass may download them first.

        Lightning calls this in one process per machine.
        """
        stage = None if self.trainer is None else self.trainer.state.fn
        learns = stage in (TrainerFn.FITTING, TrainerFn.VALIDATING) or self.test_on == "validation"
        self.check("train" if learns else "test")

    def setup(self, stage: str) -> None:
        """Read the data that ``stage`` (fit, validate, test or predict) needs, so that bad data are reported early."""
        _ = self.train_parts if stage in ("fit", "validate") else self.test_indices

    def train_dataloader(self) -> DataLoader:
        """Shuffled, augmented batches of the training part; an incomplete last batch is left out. If the Lightning
        module names ``train_positions``, only those images, without augmentation."""
        module = None if self.trainer is None else self.trainer.lightning_module
        chosen: list[int] | None = getattr(module, "train_positions", None)
        positions = self.train_parts[0] if chosen is None else chosen
        augments = self.augment and chosen is None
        samples = Samples(self.train_source, positions, self.seed if augments else None)
        sampler = EpochSampler(len(samples), self.seed, *self._process())
        # Batch statistics fail on a last batch of one image; but if the only batch is short, it is kept.
        return self._loader(samples, sampler, drop_last=len(sampler) > self.batch_size)

    def val_dataloader(self) -> DataLoader:
        """The validation part, each image once over all processes."""
        _, positions = self.train_parts
        return self._loader_once(Samples(self.train_source, positions))

    def test_dataloader(self) -> DataLoader:
        """The images at :attr:`test_indices`, each once over all processes. If the Lightning module has a ``dealing``
        (`lustral.evaluation.Dealing`), whole groups as it divides them, each image once in each replicate."""
        samples, (rank, world_size) = Samples(self.test_source, self.test_indices), self._process()
        module = None if self.trainer is None else self.trainer.lightning_module
        dealing: Dealing | None = getattr(module, "dealing", None)
        if dealing is None:
            return self._loader_once(samples)
        number = {position: i for i, position in enumerate(samples.positions.tolist())}
        share = [(replicate, number[index]) for replicate, index in dealing.shares(world_size)[rank]]
        if dealing.size == 1:
            return self._loader(samples, DealtSampler([each for _, each in share], rank, world_size))
        return self._loader(GroupedSamples(samples), DealtSampler(share, rank, world_size))

    def predict_dataloader(self) -> DataLoader:
        """The same as :meth:`test_dataloader`."""
        return self.test_dataloader()

    # How -------------------------------------------------------------------------------------------------

    def _process(self) -> tuple[int, int]:
        """Rank and number of processes, of the trainer if there is one."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader_once(self, samples: Samples) -> DataLoader:
        return self._loader(samples, DisjointSampler(len(samples), *self._process()))

    def _loader(self, samples: Dataset, sampler: Sampler, drop_last: bool = False) -> DataLoader:
        return DataLoader(
            samples,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            drop_last=drop_last,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            # Without this generator, a loader would draw its workers' seeds from the global one.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _check_num_test(self, available: int) -> None:
        if self.num_test is not None and self.num_test > available:
            raise ValueError(
                f"data.num_test is {self.num_test}, but the {self.test_on} set has {available} images: "
                f"give a number from 1 to {available}, or null for all."
            )


def _at_least(lowest: int, value: int, option: str) -> int:
    if value < lowest:
        raise ValueError(f"data.{option} is {value}; it must be an integer of at least {lowest}.")
    return value
