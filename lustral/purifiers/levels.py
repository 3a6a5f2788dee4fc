"""From a perturbation score to a noise level: SSNI's reweighting functions, and controls that ignore the image."""

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor

from lustral.noise import NoiseStream

LevelOffset = Literal["formula", "reference"]


class LevelRule(ABC):
    """The noise level of each row in noising steps out of 1000, not yet rounded.

    Attributes:
        looks: whether the level depends on the row's own score; if not, no network call is made for it.
        random: whether the rule draws random numbers.
    """

    looks: bool = True
    random: bool = False

    @abstractmethod
    def __call__(self, score: Tensor, t_star: float, reference: Tensor, noise: NoiseStream) -> Tensor:
        """(B,) levels from ``score`` (B,), the round's ``t_star``, and the stored ``reference`` scores (n,)."""


def _lowered(level_offset: LevelOffset) -> float:
    """How much t* is lowered by, in noising steps."""
    if level_offset not in get_args(LevelOffset):
        raise ValueError(f"level_offset is {level_offset!r}; it may be {', '.join(get_args(LevelOffset))}.")
    return 1.0 if level_offset == "reference" else 0.0


class LinearLevels(LevelRule):
    """SSNI-L: t* (e - min) / (max - min) + bias, with e the image's score and min and max over the reference scores.

    The ratio is clipped to [0, 1]. (In the authors' code min and max also run over the present batch, so an image's
    level depends on the other images in its batch.)

    Args:
        bias: b, in noising steps.
        level_offset: "formula", or "reference": t* - 1 in place of t*, as in the authors' code (99 for 100).
    """

    def __init__(self, bias: float = 0.0, level_offset: LevelOffset = "formula") -> None:
        self.bias, self.level_offset, self._lowered = bias, level_offset, _lowered(level_offset)

    def __call__(self, score: Tensor, t_star: float, reference: Tensor, noise: NoiseStream) -> Tensor:
        low, high = reference.min(), reference.max()
        return (t_star - self._lowered) * ((score - low) / (high - low)).clamp(0.0, 1.0) + self.bias


class SigmoidLevels(LevelRule):
    """SSNI-N: (t* + bias) sigmoid((e - mean) / temperature), with e the image's score and the mean of the reference's.

    Args:
        bias: b, in noising steps; 5 in the authors' code.
        temperature: tau, in units of the score, positive; its scale depends on the data set.
        level_offset: "formula", or "reference": t* - 1 in place of t*, as in the authors' code, so that 104 is the
            upper limit of the levels for t* = 100 and a bias of 5.
    """

    def __init__(self, bias: float = 5.0, temperature: float = 20.0, level_offset: LevelOffset = "formula") -> None:
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be positive.")
        self.bias, self.temperature, self.level_offset = bias, temperature, level_offset
        self._lowered = _lowered(level_offset)

    def __call__(self, score: Tensor, t_star: float, reference: Tensor, noise: NoiseStream) -> Tensor:
        return (t_star - self._lowered + self.bias) * torch.sigmoid((score - reference.mean()) / self.temperature)


class FixedLevels(LevelRule):
    """A control: the same share of t* for every image.

    Args:
        share: of t*, not negative; SSNI-N without a bias gives 0.5 to an image with the mean reference score.
    """

    looks = False

    def __init__(self, share: float = 0.5) -> None:
        if not share >= 0:
            raise ValueError(f"share is {share}; it cannot be negative.")
        self.share = share

    def __call__(self, score: Tensor, t_star: float, reference: Tensor, noise: NoiseStream) -> Tensor:
        return torch.full_like(score, self.share * t_star)


class MeanLevels(LevelRule):
    """A control: every image gets the mean of the levels that ``rule`` gives the reference images.

    Args:
        rule: the rule whose levels are averaged.
    """

    looks = False

    def __init__(self, rule: LevelRule) -> None:
        self.rule = rule

    def __call__(self, score: Tensor, t_star: float, reference: Tensor, noise: NoiseStream) -> Tensor:
        return self.rule(reference, t_star, reference, noise).mean().expand_as(score)


class ShuffledLevels(LevelRule):
    """A control: in each draw an image gets the level that ``rule`` gives a random reference image. The levels have the
    distribution of SSNI's levels on the reference images, and are independent of the image.

    Args:
        rule: the rule whose levels are drawn.
    """

    looks = False
    random = True

    def __init__(self, rule: LevelRule) -> None:
        self.rule = rule

    def __call__(self, score: Tensor, t_star: float, reference: Tensor, noise: NoiseStream) -> Tensor:
        chosen = (noise.fork("levels").uniform((), dtype=torch.float64) * len(reference)).long()
        return self.rule(reference, t_star, reference, noise)[chosen.clamp_max(len(reference) - 1)]
