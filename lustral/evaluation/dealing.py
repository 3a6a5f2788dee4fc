"""Who judges what: the tested images in groups, replicates and processes, the same wherever it is asked.

A run's work is a list of groups, nearly always of one image each. Sampler, progress and whoever waits for the records
of other processes deal it out by the same function, and no result depends on who does what.
"""

import hashlib
from collections.abc import Collection, Sequence
from functools import cached_property

import torch

from lustral.evaluation.audit import audited_indices
from lustral.evaluation.records import Key
from lustral.noise import NoiseStream


class Dealing:
    """The work of a run.

    A *replicate* is a partition of the tested images into groups. It depends on the seed, the replicate's number and
    the set of tested images; not on their order, the number of processes or the batch size.

    Args:
        indices: the tested images' positions in the full split, all different, in the order of the test.
        size: m, how many images are judged together.
        replicates: how many partitions are judged; 1 where images are judged alone.
        audit_images: so many images of replicate 0 are audited, and a few more if whole groups need them.
        seed: the run's.
        available: how many images ``indices`` could have been chosen from, for the message.

    Raises:
        ValueError: if the images are no whole number of groups; it names the nearest numbers that are.
    """

    def __init__(
        self,
        indices: Sequence[int],
        size: int = 1,
        replicates: int = 1,
        audit_images: int = 0,
        seed: int = 0,
        available: int | None = None,
    ) -> None:
        self.indices, self.size, self.replicates = list(indices), size, replicates
        self.audit_images, self.seed = audit_images, seed
        if len(self.indices) % size:
            most = len(self.indices) if available is None else available
            fits = [number for number in _nearest(len(self.indices), size) if number <= most]
            remedy = f"set --data.num_test to {_or(fits)}" if fits else f"choose data with {size} of them at least"
            raise ValueError(
                f"{len(self.indices)} images are tested, which are no whole number of groups of {size}, and this "
                f"defence judges {size} images together: {remedy}."
            )

    @cached_property
    def groups(self) -> list[tuple[Key, ...]]:
        """The keys of each group, replicate by replicate; of images that are judged alone in the order of the test."""
        if self.size == 1:
            return [((0, index),) for index in self.indices]
        found = []
        index = torch.tensor(sorted(self.indices), dtype=torch.int64)
        for replicate in range(self.replicates):
            stream = NoiseStream(self.seed, index).fork("partition", f"replicate {replicate}")
            order = stream.uniform((1,), dtype=torch.float64)[:, 0].argsort(stable=True)
            for group in index[order].view(-1, self.size).tolist():
                found.append(tuple((replicate, each) for each in group))
        return found

    @cached_property
    def audited(self) -> frozenset[Key]:
        """The keys that are audited: whole groups, of replicate 0, drawn by key from all."""
        first = [index for group in self.groups for replicate, index in group if replicate == 0]
        return frozenset((0, index) for index in audited_indices(first, self.audit_images, self.seed, self.size))

    @property
    def keys(self) -> list[Key]:
        """All that is to be judged."""
        return [key for group in self.groups for key in group]

    def shares(self, processes: int) -> list[list[Key]]:
        """The keys of each of ``processes``, group by group and in the order of `groups`.

        Audited groups cost many times the others, so they are dealt out first, and the others go on where they end:
        every process has as many of either, but for one.
        """
        order = sorted(range(len(self.groups)), key=lambda number: self.groups[number][0] not in self.audited)
        shares = [sorted(order[rank::processes]) for rank in range(processes)]
        return [[key for number in share for key in self.groups[number]] for share in shares]

    def unfinished(self, keys: Collection[Key], finished: Collection[Key]) -> set[Key]:
        """Those of ``keys``, whole groups, that are to be judged: a group without some of its records is judged again
        as a whole."""
        todo = set(keys) - set(finished)
        return todo if self.size == 1 else {key for group in self.groups if not todo.isdisjoint(group) for key in group}

    def check_batch_size(self, batch_size: int) -> None:
        """Refuse a batch that would cut a group.

        Raises:
            ValueError: naming the nearest that do not.
        """
        if batch_size % self.size:
            raise ValueError(
                f"data.batch_size is {batch_size}, and this defence judges {self.size} images together: set it to "
                f"{_or(_nearest(batch_size, self.size))}, which changes no result."
            )

    def described(self) -> dict[str, object]:
        """What of it decides records where images are judged together: who is in a group depends on who is tested. The
        number of replicates does not, so that a run can be extended by some."""
        if self.size == 1:
            return {}
        content = ",".join(map(str, sorted(self.indices)))
        digest = hashlib.sha256(content.encode()).hexdigest()
        return {"groups": {"size": self.size, "num_test": len(self.indices), "indices": digest}}


def _nearest(number: int, size: int) -> list[int]:
    """The multiples of ``size`` below and above ``number``, those above 0."""
    below = number // size * size
    return [multiple for multiple in (below, below + size) if multiple]


def _or(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))
