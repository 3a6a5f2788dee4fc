"""Tests of single operations for a dependence on the row, which a comparison of a few images could miss.

* Vectorised functions (sigmoid, SiLU, softplus ...) process the last elements of a CPU tensor with other code. So its
  last rows may differ if there is a tail: if R x (elements per row) is not a multiple of 32. Each function is tested on
  many values.
* Small matrix products of some libraries sum in an order that depends on the row (see `lustral.environment`). Each
  product is tested on equal rows.

Operations in float64 are not tested: rounding to the images' float32 removes such differences. On a GPU none is tested.
"""

import math
import os
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

VECTOR = 32
"""The largest number of elements that a vectorised loop of torch processes at once: a multiple of it leaves no tail."""
_TRIALS = 64  # values on which an element of a short tensor is tested
# Elementwise functions that torch does not tag as pointwise.
_UNMARKED = {
    "elu_backward", "hardsigmoid", "hardsigmoid_backward", "hardswish", "hardswish_backward", "log_sigmoid_backward",
    "logit_backward", "mish_backward", "softplus_backward",
}  # fmt: skip
_PRODUCTS = {"mm", "addmm"}


def equal_rows(values: Tensor, base: Tensor) -> Tensor:
    """(n,) bool, whether rows of ``values`` (n, ...) equal ``base``. NaN equals NaN: an attack that meets NaN fails on
    that sample only."""
    same = (values == base) | ((values != values) & (base != base))
    return same.reshape(len(values), -1).all(1)


class Operations(TorchDispatchMode):
    """Watches every operation: random draws, batch statistics, and on a CPU results that depend on the row.

    Args:
        rows: R.
        at_hand: the number of images in the query; may exceed R where a purifier chunks its network calls itself.
        on_cpu: whether elementwise functions and matrix products are tested.
    """

    def __init__(self, rows: int, at_hand: int, on_cpu: bool) -> None:
        super().__init__()
        self.rows, self.at_hand, self.on_cpu = rows, at_hand, on_cpu
        self.draws: list[str] = []
        self.batch_statistics: str | None = None
        self.tails: dict[str, int] = {}
        self.outside: dict[str, int] = {}
        self.products: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, kind = kwargs or {}, _kind(func)
        if kind is not None:
            name = func._schema.name.partition("::")[2].removesuffix("_")
            if kind == "draws":
                self.draws.append(name)
            elif kind == "batch norm":
                if _of_the_batch(func, name, args, kwargs):
                    self.batch_statistics = name
            elif self.on_cpu and self.rows > 1:
                (self._product if kind == "product" else self._elementwise)(func, name, args, kwargs)
        return func(*args, **kwargs)

    def _elementwise(self, func: Any, name: str, args: Any, kwargs: Any) -> None:
        tensors = [a for a in args if isinstance(a, Tensor)]
        size = max((a.numel() for a in tensors), default=0)
        kinds = {a.dtype for a in tensors if a.ndim}
        if size % VECTOR == 0 or not any(kind.is_floating_point for kind in kinds) or torch.float64 in kinds:
            return
        where, rows = (self.tails, self.rows) if size % self.rows == 0 else (self.outside, self.at_hand)
        if rows > 1 and size % rows == 0 and _has_tail(func, args, kwargs, size):
            where[name] = size // rows

    def _product(self, func: Any, name: str, args: Any, kwargs: Any) -> None:
        left, right = args[-2:] if name == "mm" else args[1:3]
        if left.dtype != torch.float64 and len(left) % self.rows == 0 and _mixes(func, args, left, right, self.rows):
            self.products.append(f"{len(left)} x {left.shape[1]} by {left.shape[1]} x {right.shape[1]}")

    def refuse(self) -> None:
        if self.tails:
            name, size = next(iter(self.tails.items()))
            raise ValueError(
                f"{name} treats the last elements of a tensor otherwise than the others on this processor, and a call "
                f"of --model.rows {self.rows} x {size} elements has such, so an image's bits would depend on its slot: "
                f"choose --model.rows {' or '.join(str(rows) for rows in _fitting(self.rows, self.tails.values()))}."
            )
        if self.outside:
            name = next(iter(self.outside))
            raise ValueError(
                f"{name} treats the last elements of a tensor otherwise than the others on this processor, and is used "
                "outside the calls of fixed shape, so an image's bits would depend on the images beside it: compute it "
                "in float64, or call what uses it through self.rows."
            )
        if self.products:
            raise ValueError(
                f"The product of {self.products[0]} numbers gives equal rows unequal bits on this processor, so an "
                "image's bits would depend on its slot: leave MKL_CBWR unset or AUTO,STRICT before torch is imported "
                f"(now {os.environ.get('MKL_CBWR')}), or choose a --model.rows that is a multiple of {VECTOR}."
            )


@cache
def _kind(func: Any) -> str | None:
    """What to test in an operation; None for nothing."""
    name = func._schema.name.partition("::")[2].removesuffix("_")
    if torch.Tag.nondeterministic_seeded in func.tags:
        return "draws"
    if "batch_norm" in name and "backward" not in name:
        return "batch norm"
    if name in _PRODUCTS:
        return "product"
    return "elementwise" if torch.Tag.pointwise in func.tags or name in _UNMARKED else None


def _fitting(rows: int, sizes: Iterable[int]) -> list[int]:
    """The nearest numbers of rows, below and above, for which no tensor with ``sizes`` elements per row has a tail."""
    unit = math.lcm(*(VECTOR // math.gcd(VECTOR, size) for size in sizes))
    below = rows // unit * unit
    return [*([below] if below else []), below + unit]


def _of_the_batch(func: Any, name: str, args: Any, kwargs: Any) -> bool:
    """Whether a batch norm takes its statistics from several images. (An instance norm is a batch norm of one.)"""
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    return len(args[0]) > 1 and bool(given.get("training", "with_update" in name))


_known: dict[object, bool] = {}
"""Results of the tests of functions and products on this processor."""


def _has_tail(func: Any, args: Any, kwargs: Any, size: int) -> bool:
    """Whether an elementwise function maps equal values at different places of a tensor to different bits."""
    size = size if size < VECTOR else VECTOR + size % VECTOR  # the same tail, whatever the processor's vector length
    plain = [a if not isinstance(a, Tensor) else a.dtype if a.ndim else float(a) for a in args]
    key = (func, size, repr(plain), repr(kwargs))
    if key not in _known:
        _known[key] = _moves(func, args, kwargs, size)
    return _known[key]


def _moves(func: Any, args: Any, kwargs: Any, size: int) -> bool:
    source = torch.Generator().manual_seed(0)

    def ask(values: list[Tensor]) -> Tensor:
        fresh = iter(values)
        out = func(*(next(fresh).clone() if isinstance(a, Tensor) and a.ndim else a for a in args), **kwargs)
        return out if isinstance(out, Tensor) else out[0]

    for trial in range(max(2, _TRIALS // size)):
        values = []
        for a in (a for a in args if isinstance(a, Tensor) and a.ndim):
            drawn = 3 * torch.randn(size, generator=source)
            drawn = drawn.abs() if trial % 2 else drawn  # some functions take no negative values
            values.append(drawn.to(a.dtype) if a.is_floating_point() else (drawn > 0).to(a.dtype))
        base = ask(values)
        for shift in range(1, size):
            moved = ask([v.roll(shift) for v in values]).roll(-shift)
            if not bool(equal_rows(moved[:, None], base[:, None]).all()):
                return True
    return False


def _mixes(func: Any, args: Any, left: Tensor, right: Tensor, rows: int) -> bool:
    """Whether a matrix product maps equal rows to unequal bits."""
    key = (func, rows, left.shape, left.stride(), right.shape, right.stride())
    if key not in _known:
        source, few = torch.Generator().manual_seed(0), left.numel() * right.shape[1] < 2**24
        _known[key] = False
        for _ in range(4 if few else 1):
            equal = torch.empty_like(left).copy_(torch.randn(1, left.shape[1], generator=source).expand_as(left))
            bias = [a[:1] if a.ndim == 2 else a for a in args[:-2]]
            found = func(*bias, equal, right).reshape(rows, -1)
            _known[key] |= not bool(equal_rows(found, found[0]).all())
    return _known[key]
