"""How many images of a batch are attacked before their records are written: the fewest without extra network calls.

A killed run loses the images in progress, so there should be few. But the draws of several images share network calls
of R rows: at R = 64, four images with 16 draws each take one call, and so does one image alone.
"""

import torch
from torch import Tensor

from lustral.attacks import Attack, Ensemble
from lustral.defence import Defence


def portions(images: int, defence: Defence, attack: Attack, verdict_draws: int, rows: int) -> list[Tensor]:
    """The rows of a batch, divided into portions that are attacked one after another; no result depends on them.

    The whole batch is one portion for a deterministic defence (broken images leave, and the others then share calls),
    for a defence whose rows differ in cost, and for one that judges groups (both chunk their calls themselves).

    Args:
        images: the number of images in the batch.
        defence: the defence.
        attack: the attack.
        verdict_draws: the protocol's number of verdict draws.
        rows: R.
    """
    order = torch.arange(images)
    if not defence.random or defence.ragged or defence.group_size > 1:
        return [order]
    draws = {*_draws(attack), verdict_draws}
    return list(order.split(smallest_portion(images, draws, rows)))


def smallest_portion(images: int, draws: set[int], rows: int) -> int:
    """The smallest portion with which ``images`` images need no more calls of ``rows`` rows than all at once, for every
    number of draws in ``draws``."""

    def calls(size: int, each: int) -> int:
        whole, rest = divmod(images, size)
        return whole * -(-size * each // rows) + -(-rest * each // rows)

    return next(s for s in range(1, images + 1) if all(calls(s, each) <= calls(images, each) for each in draws))


def _draws(attack: Attack) -> set[int]:
    """The numbers of draws per image that an attack or an ensemble's members use in queries and in selection."""
    if isinstance(attack, Ensemble):
        return {attack.selection_draws}.union(*(_draws(member) for member in attack.attacks))
    return {int(getattr(attack, name, 1)) for name in ("eot", "selection_draws")}
