"""Groups in which only some images are perturbed: mixed groups, camouflage, and poisoned ones."""

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from lustral.attacks.base import Attack
from lustral.attacks.engine import Engine
from lustral.attacks.victim import Cases
from lustral.noise import NoiseStream
from lustral.ratio import Ratio, parse_ratio
from lustral.threat import ThreatModel

FREE = "free"
"""The name of the statistic that says which images were perturbed (1) and which were left (0)."""
Aim = Literal["perturbed", "others", "all"]


class MixedGroups(Attack):
    """Perturbs a share of the images of each group with another attack, and leaves the others as they are.

    A statistic of a group is a mean over its images, so a few adversarial ones may hide among clean ones. The perturbed
    images are a keyed choice. Robust accuracy then counts clean images too: the statistic "free" in the records tells
    which ones were perturbed.

    Args:
        attack: perturbs the chosen images.
        share: of each group that is perturbed, in (0, 1]; at least one image is.
        aim: whose wrong answers the attack wants: the "perturbed" images'; the "others'", whose group is poisoned; or
            "all".

    Raises:
        ValueError: if an option is out of its range; in a run, if the defence judges images by themselves, or a
            poisoned group has no other images.
    """

    def __init__(self, attack: Attack, share: Ratio = 0.1, aim: Aim = "perturbed") -> None:
        if not 0 < parse_ratio(share, "attack.share") <= 1:
            raise ValueError(f"share is {share}; it must be above 0 and at most 1.")
        if aim not in get_args(Aim):
            raise ValueError(f"aim is {aim!r}; it may be {', '.join(get_args(Aim))}.")
        self.attack, self.share = attack, share
        self.aim: Aim = aim

    @property
    def target(self) -> str:
        return self.attack.target

    @property
    def measures(self) -> tuple[str, ...]:
        return (*self.attack.measures, FREE)

    def score(self, logits: Tensor, y: Tensor) -> Tensor:
        return self.attack.score(logits, y)

    def run(
        self, engine: Engine, cases: Cases, threat: ThreatModel, noise: NoiseStream
    ) -> tuple[Tensor, dict[str, Tensor]]:
        size = engine.group_size
        count = max(1, round(parse_ratio(self.share, "attack.share") * size))
        if size == 1:
            raise ValueError("MixedGroups attacks part of a group, and this defence judges each image by itself.")
        if self.aim == "others" and count == size:
            raise ValueError(f"share is {self.share}, which leaves no other images in groups of {size}: lower it.")
        order = noise.fork("free").uniform((), dtype=torch.float64).view(-1, size).argsort(dim=1, stable=True)
        free = torch.zeros_like(order, dtype=torch.bool).scatter(1, order[:, :count], True).flatten()
        aim = {"perturbed": free, "others": ~free, "all": None}[self.aim]
        result = self.attack(engine, replace(cases, free=free, aim=aim), threat, noise.fork("mixed"))
        images = torch.where(result.failed[:, None, None, None], torch.nan, result.images)
        return images, {**result.statistics, FREE: free.to(cases.images.dtype)}
