"""Network calls of one shape, whatever the number of rows at hand."""

from collections.abc import Callable

import torch
from torch import Tensor


class Pieces:
    """Calls a row-wise function on pieces of ``rows`` rows, the last one padded with copies of its last row.

    Between shapes the last bits of a convolution differ, between places in one shape they do not. So a row's bits
    do not depend on how many others happen to be with it.

    Attributes:
        rows: of every call; None calls once, with as many rows as there are.
        filled: share of the present call's rows that are not padding.
    """

    def __init__(self, rows: int | None = None) -> None:
        self.rows = rows
        self.filled = 1.0

    def __call__(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """``function(*tensors)``; tensors of no dimension are the same for all rows."""
        total = next(len(t) for t in tensors if t.ndim)
        if self.rows is None or self.rows == total:
            return function(*tensors)
        found = []
        for first in range(0, total, self.rows):
            used = min(self.rows, total - first)
            row = torch.arange(first, first + self.rows, device=tensors[0].device).clamp_max(total - 1)
            self.filled = used / self.rows
            found.append(function(*(t if t.ndim == 0 else t[row.to(t.device)] for t in tensors))[:used])
        self.filled = 1.0
        return torch.cat(found)
