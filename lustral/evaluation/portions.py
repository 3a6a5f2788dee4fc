"""How much of a batch to attack before its records are written: as little as costs no network call more.

A killed run loses what is in work, so that should be small. But a defence's draws fill calls of R rows together: four
images of 16 draws are one call of 64 rows, and so is each of them alone.
"""

import torch
from torch import Tensor

from lustral.attacks import Attack, Ensemble
from lustral.defence import Defence


def portions(images: int, defence: Defence, attack: Attack, verdict_draws: int, rows: int) -> list[Tensor]:
    """The rows of a batch of ``images``, portion by portion; no result depends on them.

    A deterministic defence gets one portion, because images that are broken leave and the others close up; and so does
    one whose rows differ in cost, as it packs its calls itself.

    Whole groups, where images are judged together; they fill calls as the purifier cuts them, so it is one portion too.

    Args:
        rows: R.
    """
    order = torch.arange(images)
    if not defence.random or defence.ragged or defence.group_size > 1:
        return [order]
    draws = {*_draws(attack), verdict_draws}
    return list(order.split(smallest_portion(images, draws, rows)))


def smallest_portion(images: int, draws: set[int], rows: int) -> int:
    """The smallest number of images a portion with which ``images`` need no more calls of ``rows`` rows than together,
    whichever of ``draws`` an image is repeated for."""

    def calls(size: int, each: int) -> int:
        whole, rest = divmod(images, size)
        return whole * -(-size * each // rows) + -(-rest * each // rows)

    return next(s for s in range(1, images + 1) if all(calls(s, each) <= calls(images, each) for each in draws))


def _draws(attack: Attack) -> set[int]:
    """How often an attack, or a member of an ensemble, repeats an image in one query or in its selection."""
    if isinstance(attack, Ensemble):
        return {attack.selection_draws}.union(*(_draws(member) for member in attack.attacks))
    return {int(getattr(attack, name, 1)) for name in ("eot", "selection_draws")}
