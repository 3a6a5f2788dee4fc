"""An ensemble of attacks: for each image the result that harms the defence most."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lustral.attacks.base import Attack, AttackResult
from lustral.attacks.engine import Engine
from lustral.attacks.first_order import GradientAttack
from lustral.attacks.leaderboard import MEASURES
from lustral.attacks.mixed_groups import MixedGroups
from lustral.attacks.selection import better, select
from lustral.attacks.victim import Cases, whole_groups
from lustral.noise import NoiseStream
from lustral.purifiers import Purifier, Variant
from lustral.threat import ThreatModel
from lustral.votes import strictly_right

WINNER = "winner"
"""The name of the statistic with the number of the member whose image was returned."""
ASKED = "asked"
"""The name of the statistic that says, for each member, whether it attacked an image (1) or skipped it (0)."""


class Ensemble(Attack):
    """Runs every member, and returns for each image the result that is most wrong on selection draws.

    All results are scored on the same draws, which neither the members nor the verdict see, under the first member's
    verdict rule. The winner is judged once: taking the worst of several verdicts would count images as broken that
    nobody attacked. Each member draws from a noise stream of its own, whatever its class, so adding a member changes
    nothing for those before it. If the defence is deterministic, an image that one member breaks is not attacked by
    the next members.

    Statistics: for each image, those of the best member that follows gradients; every member's under its number ("0
    zero_gradients", ...), 0 for the images that it did not attack ("0 asked" is 0 there); and the number of the winning
    member. The names are the same for every image, whatever its batch. An image on which any member met NaN or Inf has
    failed.

    Args:
        attacks: the members, at least one. The ensemble aims at the verdict rule of the first.
        selection_draws: draws of the defence's noise on which the members' results are compared.
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

    @property
    def measures(self) -> tuple[str, ...]:
        """The winner, the statistics of gradients if any member follows them, and all members' under their numbers."""
        own = MEASURES if self._differentiated else ()
        numbered = [f"{k} {name}" for k, each in enumerate(self.attacks) for name in (*each.measures, ASKED)]
        return (WINNER, *own, *numbered)

    @property
    def _differentiated(self) -> list[int]:
        """The numbers of the members that follow gradients."""
        return [number for number, each in enumerate(self.attacks) if set(MEASURES) <= set(each.measures)]

    def score(self, logits: Tensor, y: Tensor) -> Tensor:
        return self.attacks[0].score(logits, y)

    def run(
        self, engine: Engine, cases: Cases, threat: ThreatModel, noise: NoiseStream
    ) -> tuple[Tensor, dict[str, Tensor]]:
        results, broken_by = self._results(engine, cases, threat, noise)
        images = [result.images for result in results]
        chosen = select(engine, images, cases, noise.fork("selection"), self.selection_draws, self.score)
        decided, scores = broken_by < len(results), chosen.scores.clone()
        for number, result in enumerate(results):  # an image that a member skipped was broken by another one
            scores[number] = scores[number].masked_fill(result.statistics[ASKED] == 0, -torch.inf)
        winner = torch.where(decided, broken_by, chosen.winner)
        found = {WINNER: winner.to(cases.images.dtype), **_statistics(results, scores, self._differentiated)}
        failed = torch.stack([chosen.failed, *(result.failed for result in results)]).any(0)
        return chosen.images, {name: values.masked_fill(failed, torch.nan) for name, values in found.items()}

    def _results(
        self, engine: Engine, cases: Cases, threat: ThreatModel, noise: NoiseStream
    ) -> tuple[list[AttackResult], Tensor]:
        """Every member's result, and (B,) the number of the first member that broke the image of a deterministic
        defence; the number of members where none did, and for a random defence."""
        rows = torch.arange(len(cases), device=cases.images.device)
        broken_by, images = torch.full_like(rows, len(self.attacks)), cases.images
        results: list[AttackResult] = []
        for number, attack in enumerate(self.attacks):
            some = None
            if len(rows):
                some = attack(engine, cases.select(rows), threat, noise.fork(str(number)).select(rows))
            results.append(result := _spread(some, attack.measures, rows, images, cases, threat))
            if not engine.defence.random and number + 1 < len(self.attacks) and len(rows):
                stream = noise.fork("looks").select(rows)  # any stream would do: the defence is deterministic
                missed = ~strictly_right(engine.logits(result.images[rows], stream)[0], cases.labels[rows])
                wrong = whole_groups(missed, engine.group_size, cases.select(rows).aim)
                broken_by[rows[wrong]] = number
                images, rows = images.index_copy(0, rows, result.images[rows]), rows[~wrong]
        return results, broken_by


def gradient_attacks(attack: Attack) -> list[GradientAttack]:
    """The attacks that follow gradients: the attack itself, or members of the ensemble at any depth; of mixed groups,
    the one that perturbs them."""
    if isinstance(attack, MixedGroups):
        return gradient_attacks(attack.attack)
    if isinstance(attack, Ensemble):
        return [found for member in attack.attacks for found in gradient_attacks(member)]
    return [attack] if isinstance(attack, GradientAttack) else []


def surrogates(attack: Attack) -> list[Variant | Purifier]:
    """The surrogates that an attack differentiates in place of the defence's purifier, each once."""
    found = [member.surrogate for member in gradient_attacks(attack) if member.surrogate is not None]
    return list({id(surrogate): surrogate for surrogate in found}.values())


def _spread(
    some: AttackResult | None, measures: Sequence[str], rows: Tensor, images: Tensor, cases: Cases, threat: ThreatModel
) -> AttackResult:
    """A member's result for all cases, from its result ``some`` for the cases ``rows``; the other cases keep their
    ``images``, and have statistics of 0."""
    zero = torch.zeros_like(cases.images[:, 0, 0, 0])
    if some is None:
        return AttackResult(
            images, threat.distance(images, cases.images), zero.bool(), dict.fromkeys((*measures, ASKED), zero)
        )
    statistics = {name: zero.index_copy(0, rows, values.to(zero.dtype)) for name, values in some.statistics.items()}
    statistics[ASKED] = zero.index_fill(0, rows, 1.0)
    images = images.index_copy(0, rows, some.images)
    failed = zero.bool().index_copy(0, rows, some.failed)
    return AttackResult(images, threat.distance(images, cases.images), failed, statistics)


def _statistics(results: Sequence[AttackResult], scores: Tensor, differentiated: Sequence[int]) -> dict[str, Tensor]:
    """All members' statistics under their numbers, and for each image those of its best member with gradients."""
    found = {
        f"{number} {name}": values for number, each in enumerate(results) for name, values in each.statistics.items()
    }
    if differentiated:
        best = better(scores[list(differentiated)])[None]
        for name in MEASURES:
            stacked = torch.stack([results[number].statistics[name] for number in differentiated])
            found[name] = stacked.gather(0, best)[0]
    return found
