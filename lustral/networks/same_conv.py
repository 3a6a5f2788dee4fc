"""Convolutions with TensorFlow's and JAX's "SAME" padding, and the activations that networks name."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu}


class SameConv2d(nn.Conv2d):
    """A 3 x 3 convolution without bias that pads images of even sides as "SAME" padding does.

    At stride 1 one row or column of zeros is added on every side. At stride 2 zeros are added below and on the right
    only: with ``padding=1``, the windows would be one pixel further up and left.

    Args:
        width_in: channels of the input.
        width_out: channels of the output.
        stride: 1 or 2.
    """

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__(width_in, width_out, 3, stride, padding=0, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (1, 1, 1, 1) if self.stride == (1, 1) else (0, 1, 0, 1)))


def activation_named(name: str) -> Callable[[Tensor], Tensor]:
    """The activation function by the name that a network's ``activation`` option takes.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation is {name!r}; it may be {' or '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]
