"""What must hold in a process before torch and torchvision are used: import this module first.

Four facts about the machine decide whether anything works at all, and none belongs in a method's file:

* OpenMP's spinning threads make two processes of two threads on two cores about a hundred times slower than
  sleeping ones, so ``OMP_WAIT_POLICY=PASSIVE`` is set before torch starts its pool.
* Intel's MKL sums small matrix products in an order that depends on the row: a linear layer of 64 inputs and 3 outputs
  was seen to give equal rows unequal bits at 3 to 12 rows (Xeon with AVX-512), and then an image's bits depend on its
  slot. ``MKL_CBWR=AUTO,STRICT`` makes them agree, at no cost that could be seen there; AVX2 without STRICT makes it
  worse. MKL reads it when it starts, so it is set before torch; a value that is there already is kept. What it does
  not reach (torch imported by someone else before, other libraries and processors) is found by the check before an
  evaluation, `lustral.evaluation.selfcheck`.
* A torchvision wheel built for another kind of torch (a CUDA torchvision beside a CPU torch is what a plain
  ``pip install`` gives on some machines) cannot load its compiled operators, and then ``import torchvision``
  fails while registering their shape functions. Lustral uses none of these operators (they are for detection),
  so declaring their signatures is enough. Calling one still raises, as it should.
* glibc's heap keeps the gaps between tensors of many sizes: an attack on SSNI, whose rows differ in cost, was seen to
  grow to 12 GB, and 2 of 5 GB to be such gaps. `release_heap` gives them back.
"""

import ctypes
import os
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

import torch

_TORCHVISION_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


_RELEASE_EVERY = 10.0
"""Seconds between two releases: one may take a tenth of a second, and what is used again must be fetched again."""


def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's function of that name; None where the C library is another."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


class _Heap:
    def __init__(self) -> None:
        self.trim, self.released = _malloc_trim(), -_RELEASE_EVERY

    def release(self) -> None:
        now = time.monotonic()
        if self.trim is not None and now - self.released >= _RELEASE_EVERY:
            self.released = now
            self.trim(0)


_heap = _Heap()


def release_heap() -> None:
    """Give the unused parts of the heap back to the machine, at most every 10 seconds; call it between steps of long
    work. Nothing happens where the C library is not glibc."""
    _heap.release()


def _import_torchvision() -> torch.library.Library | None:
    """Import torchvision; where its operators do not load, declare them first and return the declarations."""
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    else:
        return None
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # the half-initialised package would be handed out to the next importer
    declarations = torch.library.Library("torchvision", "DEF")
    for schema in _TORCHVISION_OPERATORS:
        declarations.define(schema)
    import torchvision  # noqa: F401

    return declarations


# Kept for the life of the process: the declarations are withdrawn when this object is.
torchvision_declarations = _import_torchvision()
