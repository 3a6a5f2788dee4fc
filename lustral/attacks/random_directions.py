"""The control that every adaptive attack must beat: random points on the edge of the budget."""

import torch
from torch import Tensor

from lustral.attacks.base import Attack
from lustral.attacks.engine import Engine
from lustral.attacks.objectives import Margin
from lustral.attacks.victim import Cases, group_sum
from lustral.noise import NoiseStream
from lustral.threat import ThreatModel
from lustral.votes import strictly_right


class RandomDirections(Attack):
    """The most harmful of ``tries`` random perturbations that use the whole budget, chosen on selection draws.

    Args:
        tries: perturbations per image, at least 1.
        selection_draws: draws of the defence's noise on which they are compared, at least 1.
    """

    def __init__(self, tries: int = 10, selection_draws: int = 16) -> None:
        if tries < 1 or selection_draws < 1:
            raise ValueError(f"tries = {tries} and selection_draws = {selection_draws} must be at least 1.")
        self.tries, self.selection_draws = tries, selection_draws

    @property
    def measures(self) -> tuple[str, ...]:
        return ("score",)

    def run(
        self, engine: Engine, cases: Cases, threat: ThreatModel, noise: NoiseStream
    ) -> tuple[Tensor, dict[str, Tensor]]:
        best, best_score = cases.images, cases.images.new_full((len(cases),), -torch.inf, dtype=torch.float64)
        objective, bad = Margin(), torch.zeros(len(cases), dtype=torch.bool, device=cases.images.device)
        for k in range(self.tries):
            found = threat.random_boundary_point(cases.images, noise.fork("direction").at(iteration=k))
            found = cases.confined(found)
            logits = engine.logits(found, noise.fork("selection"), self.selection_draws)
            bad |= ~logits.isfinite().all(-1).all(0)
            wrong = (~strictly_right(logits, cases.labels)).double().mean(0)
            # The share of wrong draws comes first; the margin, bounded by tanh, mainly breaks ties between shares.
            score = wrong * 4 + torch.tanh(objective(logits, cases.labels).double())
            score = group_sum(score, engine.group_size, cases.aim)
            better = score > best_score
            best = torch.where(better[:, None, None, None], found, best)
            best_score = torch.where(better, score, best_score)
            engine.observe(self.name, k + 1, self.tries)
        return best, {"score": best_score.masked_fill(bad, torch.nan)}
