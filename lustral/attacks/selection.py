"""Which of several candidates an attack returns: chosen on draws that neither attack nor verdict sees."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lustral.attacks.engine import Engine
from lustral.attacks.objectives import Objective
from lustral.attacks.victim import Cases, group_sum
from lustral.noise import NoiseStream


def score(objective: Objective, logits: Tensor, y: Tensor) -> Tensor:
    """(2, B) float64: the wrongness of ``logits`` (N draws, B, K) under the objective's rule, and its loss of them."""
    return torch.stack((objective.wrongness(logits, y), objective.plain(logits, y).double()))


class Selected(NamedTuple):
    """``images`` (B, C, H, W), the number of the candidate that each is, (B,), and the candidates' ``scores``
    (candidates, 2, B); ``failed`` (B,) where any candidate's logits are NaN or Inf."""

    images: Tensor
    winner: Tensor
    scores: Tensor
    failed: Tensor


def select(
    engine: Engine,
    candidates: Sequence[Tensor],
    cases: Cases,
    noise: NoiseStream,
    draws: int,
    scored: Callable[[Tensor, Tensor], Tensor],
) -> Selected:
    """Of ``candidates`` (B, C, H, W) each, image by image the one that is most wrong; among equals, of higher loss.
    Where images are judged together, group by group: what counts is the sum over the images that are aimed at.

    Every candidate is scored on the same draws, which makes the comparison sharper and the winner's own score no
    estimate of anything: the verdict has its own noise.
    """
    y, size = cases.labels, engine.group_size
    found, failed = [], torch.zeros(len(y), dtype=torch.bool, device=y.device)
    for number, candidate in enumerate(candidates, 1):
        logits = engine.logits(candidate, noise, draws, f"selection, candidate {number} of {len(candidates)}")
        failed |= ~logits.isfinite().all(-1).all(0)
        found.append(group_sum(scored(logits, y), size, cases.aim))
    scores = torch.stack(found)
    winner = better(scores)
    return Selected(
        torch.stack(list(candidates))[winner, torch.arange(len(y), device=y.device)], winner, scores, failed
    )


def better(scores: Tensor) -> Tensor:
    """(B,) the number of the best of the candidates with ``scores`` (candidates, 2, B)."""
    ties = scores[:, 0] == scores[:, 0].amax(0)
    return scores[:, 1].nan_to_num(-torch.inf).masked_fill(~ties, -torch.inf).argmax(0)
