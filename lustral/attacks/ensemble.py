"""Several attacks as one: image by image the result that harms most."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lustral.attacks.base import Attack, AttackResult, Cases
from lustral.attacks.engine import Engine
from lustral.attacks.first_order import FirstOrderAttack
from lustral.attacks.selection import better, select
from lustral.noise import NoiseStream
from lustral.purifiers import Purifier
from lustral.threat import ThreatModel

WINNER = "winner"
"""The statistic that holds the number of the member which an image is from."""


class Ensemble(Attack):
    """Runs every member, and returns for each image the result that is most wrong on selection draws.

    All results are scored on the same draws, which neither the members nor the verdict see, under the first member's
    rule; the winner is judged once, as always. (The worst of several verdicts would break images that nobody attacked.)
    Each member draws from a stream of its own, whatever its class, so adding one changes nothing for the others.

    Statistics: those of the best member that has gradients, image by image; every member's under its number ("0
    zero_gradients", ...); and which member won. An image on which any member met NaN or Inf has failed.

    Args:
        attacks: the members, at least one. The rule aimed at is the first one's.
        selection_draws: draws of the defence's noise on which their results are compared.
    """

    def __init__(self, attacks: Sequence[Attack], selection_draws: int = 16) -> None:
        if len(attacks) < 1 or selection_draws < 1:
            raise ValueError(
                f"{len(attacks)} attacks and selection_draws = {selection_draws}: an ensemble needs at least 1 of each."
            )
        self.attacks, self.selection_draws = list(attacks), selection_draws

    @property
    def target(self) -> str:
        return self.attacks[0].target

    def score(self, logits: Tensor, y: Tensor) -> Tensor:
        return self.attacks[0].score(logits, y)

    def run(
        self, engine: Engine, cases: Cases, threat: ThreatModel, noise: NoiseStream
    ) -> tuple[Tensor, dict[str, Tensor]]:
        results = [attack(engine, cases, threat, noise.fork(str(number))) for number, attack in enumerate(self.attacks)]
        images = [result.images for result in results]
        chosen = select(engine, images, cases.labels, noise.fork("selection"), self.selection_draws, self.score)
        found = {WINNER: chosen.winner.to(cases.images.dtype), **_statistics(results, chosen.scores)}
        failed = torch.stack([chosen.failed, *(result.failed for result in results)]).any(0)
        return chosen.images, {name: values.masked_fill(failed, torch.nan) for name, values in found.items()}


def surrogates(attack: Attack) -> list[Purifier]:
    """Every purifier that an attack differentiates in place of the defence's, each once."""
    if isinstance(attack, Ensemble):
        return list({id(p): p for member in attack.attacks for p in surrogates(member)}.values())
    return [attack.surrogate] if isinstance(attack, FirstOrderAttack) and attack.surrogate is not None else []


def _statistics(results: Sequence[AttackResult], scores: Tensor) -> dict[str, Tensor]:
    """Of the best of those with gradients, image by image; and all of them under the members' numbers."""
    found = {
        f"{number} {name}": values for number, each in enumerate(results) for name, values in each.statistics.items()
    }
    differentiated = [number for number, each in enumerate(results) if "zero_gradients" in each.statistics]
    if differentiated:
        best = better(scores[differentiated])[None]
        for name in ("zero_gradients", "loss_first", "loss_last", "predicted_gain"):
            stacked = torch.stack([results[number].statistics[name] for number in differentiated])
            found[name] = stacked.gather(0, best)[0]
    return found
