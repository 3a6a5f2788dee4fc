"""Samplers for one or several processes: test samples are never repeated, training samples carry their epoch."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

from torch.utils.data import Dataset, DistributedSampler


class DisjointSampler(DistributedSampler[int]):
    """Every sample once over all processes, in order: process ``rank`` gets rank, rank + world_size, ...

    Torch's own sampler repeats samples until all processes have the same number, which makes metrics wrong; here
    the shares may differ by one and may be empty. The class is a ``DistributedSampler``, so that Lightning does not
    shard it a second time.

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
    """A process's given share of the samples, in order; a ``DistributedSampler`` for the reason in `DisjointSampler`.

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

    The order depends on (seed, epoch) only. Each sample carries the epoch, also into worker processes, where it
    keys the sample's augmentation. Shares are padded to equal length with repeated samples: in training, unlike in
    a test, the others would wait for the gradient of a process with one batch fewer. Lightning calls ``set_epoch``
    before each epoch; a hand-written loop must do so itself.

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
