"""Samplers for one process or several: a test never repeats a sample, a training draw knows its epoch."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

from torch.utils.data import Dataset, DistributedSampler


class DisjointSampler(DistributedSampler[int]):
    """Every sample once over all processes, in order: process ``rank`` gets rank, rank + world_size, ...

    Torch's own sampler repeats samples until all processes have as many, which makes a metric wrong; here the
    processes' shares may differ by one and may be empty. It is a ``DistributedSampler`` all the same, so that
    Lightning takes it as it is and does not shard it a second time.

    Args:
        length: number of samples, >= 0.
        rank: this process, 0 <= rank < world_size.
        world_size: number of processes, >= 1.

    Raises:
        ValueError: if ``rank`` is not one of the processes.
    """

    def __init__(self, length: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(cast(Dataset, range(length)), num_replicas=world_size, rank=rank, shuffle=False)
        self._share = range(rank, length, world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self._share)

    def __len__(self) -> int:
        return len(self._share)


class DealtSampler(DistributedSampler[Any]):
    """What a process was dealt, in order. It is a ``DistributedSampler`` for the reason that `DisjointSampler` is.

    Args:
        share: this process's samples, or pairs (replicate, sample).
        rank: this process, 0 <= rank < world_size.
        world_size: number of processes, >= 1.

    Raises:
        ValueError: if ``rank`` is not one of the processes.
    """

    def __init__(self, share: Sequence[int] | Sequence[tuple[int, int]], rank: int = 0, world_size: int = 1) -> None:
        super().__init__(cast(Dataset, share), num_replicas=world_size, rank=rank, shuffle=False)
        self._share = list(share)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._share)

    def __len__(self) -> int:
        return len(self._share)


class EpochSampler(DistributedSampler[tuple[int, int]]):
    """A shuffled share of the samples for training, as pairs (epoch, sample).

    The order depends on (seed, epoch) only. The epoch goes with each sample, into worker processes too, where
    it keys the sample's augmentation. Shares are filled up to equal length: in training, unlike in a test, a
    process with a batch less would leave the others waiting for its gradient. Lightning calls ``set_epoch``
    before each epoch; a hand-written loop has to do so itself.

    Args:
        length: number of samples, >= 1.
        seed: >= 0.
        rank, world_size: as for :class:`DisjointSampler`.
    """

    def __init__(self, length: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(cast(Dataset, range(length)), num_replicas=world_size, rank=rank, shuffle=True, seed=seed)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        for sample in cast(Iterator[int], super().__iter__()):
            yield epoch, sample
