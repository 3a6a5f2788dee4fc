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
    position in its full split, whatever subset was chosen. Validation takes a part away from training and is
    indexed like it; test and predict see the same images. A module that judges images in groups has them dealt in
    whole groups (see `test_dataloader`), and then ``replicate`` int64 (B,) is a fourth part of the batch.

    A child says what its data are (the attributes below), whether they are there (:meth:`check`) and how to
    read them (:meth:`load_train`, :meth:`load_test`). Nothing is read before it is needed, and nothing draws
    from a global generator.

    Attributes:
        name: of the data set, such as "digits".
        channels: of an image, C.
        image_size: height and width of an image in pixels.
        augment: whether training changes the images at random.

    Args:
        batch_size: images a batch and process, >= 1.
        num_workers: processes that load images, beside this one, >= 0.
        num_val: images taken away from the training split for validation, >= 1.
        num_test: test only the first so many images of the test set; None: all of them.
        test_subset: an index file with the positions to test, in order (see ``configs/subsets``), relative to
            the working directory; None: the whole test part.
        test_on: "test", or "validation" to choose a defence's options without looking at a test image: then "test
            set" means the validation part in everything said here, and positions are those of the training split.
        seed: of the shuffling and the augmentation, >= 0.

    Raises:
        ValueError: if a number is out of its range, or the index file is not one.
        FileNotFoundError: if there is no such index file.
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
        # With more processes than images some have nothing to do, and that is no error.
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
        """Look whether the files of a split are there, without reading them.

        Raises:
            FileNotFoundError: saying what is missing, where it was looked for and how to get it.
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
        """The positions to train on and those to validate on: the latter begin a fixed stratified order.

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
        """The full training split, read when it is first asked for."""
        self.check("train")
        return self.load_train()

    @cached_property
    def test_source(self) -> ImageSource:
        """The full split that is tested, read when it is first asked for."""
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
            ValueError: if the subset leaves the test part.
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
        """(n, C, H, W) in [0, 1]: some images of the test split by their position in it, on any process."""
        samples = Samples(self.test_source, list(positions))
        return torch.stack([samples[i][0] for i in range(len(samples))])

    def fingerprint(self) -> dict[str, object]:
        """Which test images these are: equal for equal pixels and labels, wherever the files lie.

        Independent of the subset, ``num_test``, batch size and workers: an image keeps its index through all
        of them, so results of a part can be joined with those of the whole.
        """
        return {
            "dataset": self.name,
            "split": self.test_on,
            "num_classes": self.num_classes,
            "channels": self.channels,
            "image_size": self.image_size,
            "pixels": dict(self.pixel_options()),
            "content": self.test_source.digest(),
        }

    # What Lightning calls --------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Look whether the data that the trainer needs are there; a child that can download does so first.

        Lightning calls this in one process a machine.
        """
        stage = None if self.trainer is None else self.trainer.state.fn
        learns = stage in (TrainerFn.FITTING, TrainerFn.VALIDATING) or self.test_on == "validation"
        self.check("train" if learns else "test")

    def setup(self, stage: str) -> None:
        """Read what ``stage`` (fit, validate, test or predict) needs, so that bad data stop it early."""
        _ = self.train_parts if stage in ("fit", "validate") else self.test_indices

    def train_dataloader(self) -> DataLoader:
        """Shuffled, augmented batches of the training part; an incomplete last batch is left out."""
        positions, _ = self.train_parts
        samples = Samples(self.train_source, positions, self.seed if self.augment else None)
        sampler = EpochSampler(len(samples), self.seed, *self._process())
        # A last batch of one image has no batch statistics; a lone short batch is better than none.
        return self._loader(samples, sampler, drop_last=len(sampler) > self.batch_size)

    def val_dataloader(self) -> DataLoader:
        """The validation part, each image once over all processes."""
        _, positions = self.train_parts
        return self._loader_once(Samples(self.train_source, positions))

    def test_dataloader(self) -> DataLoader:
        """The images at :attr:`test_indices`, each once over all processes; or as the module deals them, if it has a
        ``dealing`` (`lustral.evaluation.Dealing`): whole groups, in each replicate once."""
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
        """Rank and number of processes: those of the trainer, where there is one."""
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
            # Without one of its own a loader draws its workers' seeds from the global generator.
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
