"""Whether a draw is classified correctly, and votes over draws. Ties and NaN choose no class."""

import torch.nn.functional as F
from torch import Tensor


def strictly_right(scores: Tensor, y: Tensor) -> Tensor:
    """Whether the true class scores strictly higher than every other, (..., B) from (..., B, K); NaN is wrong."""
    is_true = F.one_hot(y, scores.shape[-1]).bool().expand_as(scores)
    true = scores.masked_fill(~is_true, 0.0).sum(-1)
    return (scores < true[..., None]).logical_or(is_true).all(-1) & ~true.isnan()


def votes(logits: Tensor) -> Tensor:
    """(B, K) float64: how many draws (N, B, K) choose each class; a draw with a tie or NaN chooses none."""
    top = logits == logits.amax(-1, keepdim=True)
    return (top & (top.sum(-1, keepdim=True) == 1)).double().sum(0)
