"""How far a classifier's answer is from another one, and how undecided it is: one value an image.

They are computed in float64, since the last bits of a float32 exponential depend on its place in the batch, and
returned in the type of the logits.
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Divergence = Literal["kl", "cross_entropy", "cosine"]


def kl(logits: Tensor, reference: Tensor) -> Tensor:
    """(B,) KL(softmax(``reference``) || softmax(``logits``)), in nats, of logits (B, K) each."""
    own, other = (F.log_softmax(each.double(), 1) for each in (logits, reference))
    return F.kl_div(own, other, reduction="none", log_target=True).sum(1).to(logits.dtype)


def cross_entropy(logits: Tensor, reference: Tensor) -> Tensor:
    """(B,) cross-entropy of ``logits`` with the class that ``reference`` chooses, (B, K) each. (With all its
    probabilities, it would have the gradient of `kl`, which differs by their entropy alone.) It has no gradient in
    ``reference``."""
    return F.cross_entropy(logits.double(), reference.argmax(1), reduction="none").to(logits.dtype)


def cosine(logits: Tensor, reference: Tensor) -> Tensor:
    """(B,) 1 - the cosine of the angle between logits (B, K) each, in [0, 2]."""
    return (1.0 - F.cosine_similarity(logits.double(), reference.double(), 1)).to(logits.dtype)


def entropy(logits: Tensor) -> Tensor:
    """(B,) entropy of softmax(``logits``), in nats, of logits (B, K)."""
    log = F.log_softmax(logits.double(), 1)
    return -(log.exp() * log).sum(1).to(logits.dtype)


DIVERGENCES: dict[Divergence, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": kl,
    "cross_entropy": cross_entropy,
    "cosine": cosine,
}
