"""Settings of the process that must be made before torch and torchvision are used: import this module first.

They handle four properties of machines and installations:

* Two processes of two OpenMP threads on two cores are about a hundred times slower if idle threads spin than if they
  sleep, so ``OMP_WAIT_POLICY=PASSIVE`` is set before torch starts its thread pool.
* Intel's MKL sums small matrix products in an order that depends on the row: on a Xeon with AVX-512, a linear layer of
  64 inputs and 3 outputs gave equal rows unequal bits at 3 to 12 rows, so that an image's bits depended on its row in
  the batch. ``MKL_CBWR=AUTO,STRICT`` makes them equal, at no measurable cost there; AVX2 without STRICT makes it worse.
  MKL reads the variable when it starts, so it is set before torch; a value that is already set is kept. Cases that the
  variable does not reach (torch imported earlier, other libraries and processors) are found by the check before an
  evaluation, `lustral.evaluation.selfcheck`.
* A torchvision wheel built for another kind of torch (on some machines a plain ``pip install`` gives a CUDA torchvision
  beside a CPU torch) cannot load its compiled operators, and ``import torchvision`` then fails while registering their
  shape functions. Lustral uses none of these operators (they are for detection), so declaring their signatures is
  enough. Calling one still raises, as it should.
* glibc's heap keeps the gaps between freed tensors of different sizes: an attack on SSNI, whose rows differ in cost,
  grew to 12 GB, and 2 of 5 GB were found to be such gaps. `release_heap` returns them to the operating system.
"""

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

import torch

_TORCHVISION_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


_RELEASE_EVERY = 10.0
"""Seconds between two releases: one may take a tenth of a second, and released memory that is used again must be
allocated again."""


def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's ``malloc_trim``; None with another C library."""
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
    """Return unused parts of the heap to the operating system, at most every 10 seconds; to be called between steps of
    long computations. It does nothing where the C library is not glibc."""
    _heap.release()


def settle(device_type: str) -> None:
    """Configure torch so that an image's bits depend on no timing, no number of threads and no shortened numbers.

    Args:
        device_type: "cpu", "cuda" ..., where the networks are.
    """
    if device_type == "cpu":
        # Sums are split over the threads of the pool, so their last bits depend on the number of threads. To use more
        # cores, start more processes, which does not change results.
        torch.set_num_threads(1)
    # In benchmark mode cuDNN chooses algorithms by timing, and an image's bits would depend on the choice.
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    # With TF32 a GPU multiplies float32 numbers with 10 bits of mantissa.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def settled(device_type: str) -> Iterator[None]:
    """In this context torch is configured by `settle`; afterwards it is as it was."""
    cudnn, matmul, threads = torch.backends.cudnn, torch.backends.cuda.matmul, torch.get_num_threads()
    before = (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32)
    settle(device_type)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before[:2]
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before[2:]


def _import_torchvision() -> torch.library.Library | None:
    """Import torchvision; if its operators do not load, declare them, import it again and return the declarations."""
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    else:
        return None
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # or the next import would return the half-initialised package
    declarations = torch.library.Library("torchvision", "DEF")
    for schema in _TORCHVISION_OPERATORS:
        declarations.define(schema)
    import torchvision  # noqa: F401

    return declarations


# Kept for the life of the process: the operators are undeclared when this object is deleted.
torchvision_declarations = _import_torchvision()
