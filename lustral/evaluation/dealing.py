"""How the tested images are divided into replicates, groups and processes.

A run's work is a list of groups, nearly always of one image each. The sampler, the progress display and the code that
waits for the records of other processes all use the same division, and no result depends on which process judges an
image.
"""

import hashlib
from collections.abc import Collection, Sequence
from functools import cached_property

import torch

from lustral.evaluation.audit import audited_indices
from lustral.evaluation.records import Key
from lustral.noise import NoiseStream


class Dealing:
    """The work of a run: which images are judged together, which are audited, and by which process.

    A *replicate* is a partition of the tested images into groups. It depends on the seed, the replicate's number and
    the set of tested images, but not on their order, the number of processes or the batch size.

    Args:
        indices: the tested images' positions in the full data set split, without repetition, in the order of the test.
        size: m, the number of images that are judged together.
        replicates: the number of partitions that are judged; 1 where images are judged alone.
        audit_images: the number of images of replicate 0 that are audited; a few more if whole groups need them.
        seed: the run's seed.
        available: the number of images that ``indices`` were chosen from, for the error message.

    Raises:
        ValueError: if the number of images is not a multiple of ``size``; the message names the nearest multiples.
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
        """The keys of each group, replicate by replicate; images that are judged alone are in the order of the test."""
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
        """The keys that are audited: whole groups of replicate 0, a keyed random choice (see `audited_indices`)."""
        first = [index for group in self.groups for replicate, index in group if replicate == 0]
        return frozenset((0, index) for index in audited_indices(first, self.audit_images, self.seed, self.size))

    @property
    def keys(self) -> list[Key]:
        """The keys of all groups."""
        return [key for group in self.groups for key in group]

    def shares(self, processes: int) -> list[list[Key]]:
        """The keys of each of ``processes`` processes, group by group and in the order of `groups`.

        Audited groups cost many times as much as others. So they are dealt out in turn first, then the others from the
        next process on: the numbers of audited and of other groups differ by at most one between processes.
        """
        order = sorted(range(len(self.groups)), key=lambda number: self.groups[number][0] not in self.audited)
        shares = [sorted(order[rank::processes]) for rank in range(processes)]
        return [[key for number in share for key in self.groups[number]] for share in shares]

    def unfinished(self, keys: Collection[Key], finished: Collection[Key]) -> set[Key]:
        """The ``keys`` (whole groups) that are still to be judged, given the ``finished`` ones. A group of which any
        record is missing is judged again as a whole."""
        todo = set(keys) - set(finished)
        return todo if self.size == 1 else {key for group in self.groups if not todo.isdisjoint(group) for key in group}

    def check_batch_size(self, batch_size: int) -> None:
        """Refuse a batch size that would split a group.

        Raises:
            ValueError: if it would; the message names the nearest batch sizes that do not.
        """
        if batch_size % self.size:
            raise ValueError(
                f"data.batch_size is {batch_size}, and this defence judges {self.size} images together: set it to "
                f"{_or(_nearest(batch_size, self.size))}, which changes no result."
            )

    def described(self) -> dict[str, object]:
        """The part of the division that decides records, for the fingerprint; empty where images are judged alone.

        In groups, an image's record depends on the set of tested images, which decides who is in its group. It does not
        depend on the number of replicates, so a run can be extended by more of them.
        """
        if self.size == 1:
            return {}
        content = ",".join(map(str, sorted(self.indices)))
        digest = hashlib.sha256(content.encode()).hexdigest()
        return {"groups": {"size": self.size, "num_test": len(self.indices), "indices": digest}}


def _nearest(number: int, size: int) -> list[int]:
    """The nearest positive multiples of ``size`` below and above ``number``."""
    below = number // size * size
    return [multiple for multiple in (below, below + size) if multiple]


def _or(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))
