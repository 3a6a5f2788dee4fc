"""Random numbers named by a key, so that a sample's draws depend on the sample and on nothing else."""

import zlib

import numpy as np


def keyed_generator(purpose: str, seed: int, epoch: int, index: int) -> np.random.Generator:
    """A generator whose draws depend on the four arguments only.

    Two different keys give independent streams: seed and purpose are the key of a Philox counter generator,
    epoch and index the high half of its counter, the low half (2^128 draws) being left to the stream.

    Args:
        purpose: what the draws are for, so that two uses with equal numbers do not share them.
        seed, epoch, index: integers of at least 0 and below 2^64.
    """
    key = np.array([seed, zlib.crc32(purpose.encode())], dtype=np.uint64)
    counter = np.array([0, 0, epoch, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
