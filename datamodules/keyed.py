"""Keyed random numbers, so that a sample's augmentation or rendering depends on its key and nothing else."""

import zlib

import numpy as np


def keyed_generator(purpose: str, seed: int, epoch: int, index: int) -> np.random.Generator:
    """A generator whose random numbers depend on the four arguments only.

    Different arguments give independent streams: seed and purpose are the key of a Philox counter generator, epoch
    and index the high half of its counter; the low half (2^128 values) counts within the stream.

    Args:
        purpose: what the random numbers are for, so that two uses with equal other arguments do not share them.
        seed, epoch, index: integers of at least 0 and below 2^64.
    """
    key = np.array([seed, zlib.crc32(purpose.encode())], dtype=np.uint64)
    counter = np.array([0, 0, epoch, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
