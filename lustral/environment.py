"""What must hold in a process before torch and torchvision are used: import this module first.

Two facts about the machine decide whether anything works at all, and neither belongs in a method's file:

* OpenMP's spinning threads make two processes of two threads on two cores about a hundred times slower than
  sleeping ones, so ``OMP_WAIT_POLICY=PASSIVE`` is set before torch starts its pool.
* A torchvision wheel built for another kind of torch (a CUDA torchvision beside a CPU torch is what a plain
  ``pip install`` gives on some machines) cannot load its compiled operators, and then ``import torchvision``
  fails while registering their shape functions. Lustral uses none of these operators (they are for detection),
  so declaring their signatures is enough. Calling one still raises, as it should.
"""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

_TORCHVISION_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


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
