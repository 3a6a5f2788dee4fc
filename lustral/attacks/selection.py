"""Selection: which of several candidates an attack returns, chosen on draws that neither attack nor verdict sees."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lustral.attacks.engine import Engine
from lustral.attacks.objectives import Objective
from lustral.attacks.victim import Cases, group_sum
from lustral.noise import NoiseStream


def score(objective: Objective, logits: Tensor, y: Tensor) -> Tensor:
    """(2, B) float64: how wrong ``logits`` (N draws, B, K) are under the objective's rule, and its plain loss."""
    return torch.stack((objective.wrongness(logits, y), objective.plain(logits, y).double()))


class Selected(NamedTuple):
    """The selected candidates.

    Attributes:
        images: (B, C, H, W).
        winner: (B,) the number of the candidate that each image is from.
        scores: (candidates, 2, B) float64.
        failed: (B,) whether the logits of any candidate have a NaN or Inf.
    """

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
    """For each image the candidate with the highest score: the most wrong one, and among equals that of higher loss.

    Where images are judged together, the choice is made for each group, by the sum of the scores over its images that
    are aimed at. Every candidate is scored on the same draws, which makes the comparison more precise. The winner's
    score is biased by the selection and estimates nothing; the verdict uses noise of its own.

    Args:
        engine: of the defence that is judged.
        candidates: (B, C, H, W) each.
        cases: B rows.
        noise: B rows.
        draws: draws on which each candidate is scored.
        scored: (2, B) scores from logits (N, B, K) and labels (B,) (see `Attack.score`).
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
    """(B,) the number of the candidate of highest ``scores`` (candidates, 2, B); the second row breaks ties."""
    ties = scores[:, 0] == scores[:, 0].amax(0)
    return scores[:, 1].nan_to_num(-torch.inf).masked_fill(~ties, -torch.inf).argmax(0)
