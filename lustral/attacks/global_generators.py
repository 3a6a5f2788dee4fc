"""The global generators, which code from elsewhere draws from: seeded for a while, and put back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """In this context torch's, numpy's and Python's global generators start from ``seed``, in [0, 2**32); afterwards
    they are as before."""
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002  (what foreign code draws from)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numbers)  # noqa: NPY002
            random.setstate(python)
