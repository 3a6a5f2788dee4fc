"""From a perturbation score to a noise level: SSNI's reweighting functions, and controls that look at no image."""

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor

from lustral.noise import NoiseStream

LevelOffset = Literal["formula", "reference"]


class LevelRule(ABC):
    """The noise level of each row in steps out of 1000, not yet rounded.

    Attributes:
        looks: whether the row's own score matters; a rule that does not look costs no network call.
        random: whether the rule draws.
    """

    looks: bool = True
    random: bool = False

    @abstractmethod
    def __call__(self, score: Tensor, t_star: float, reference: Tensor, noise: NoiseStream) -> Tensor:
        """(B,) levels from ``score`` (B,), the round's own ``t_star``, and the stored ``reference`` scores (n,)."""


def _lowered(level_offset: LevelOffset) -> float:
    """What is taken off t*, in noising steps."""
    if level_offset not in get_args(LevelOffset):
        raise ValueError(f"level_offset is {level_offset!r}; it may be {', '.join(get_args(LevelOffset))}.")
    return 1.0 if level_offset == "reference" else 0.0


class LinearLevels(LevelRule):
    """SSNI-L: t* (e - min) / (max - min) + bias, the extremes being those of the reference; the ratio is clipped to
    [0, 1] (the authors' extremes are over the reference and the batch at hand, so an image's level depends on its
    neighbours).

    Args:
        bias: b, in noising steps.
        level_offset: "formula", or "reference": t* - 1 in the place of t*, as the authors' code has it (99 for 100).
    """

    def __init__(self, bias: float = 0.0, level_offset: LevelOffset = "formula") -> None:
        self.bias, self.level_offset, self._lowered = bias, level_offset, _lowered(level_offset)

    def __call__(self, score: Tensor, t_star: float, reference: Tensor, noise: NoiseStream) -> Tensor:
        low, high = reference.min(), reference.max()
        return (t_star - self._lowered) * ((score - low) / (high - low)).clamp(0.0, 1.0) + self.bias


class SigmoidLevels(LevelRule):
    """SSNI-N: (t* + bias) sigmoid((e - mean) / temperature), the mean being that of the reference.

    Args:
        bias: b, in noising steps; 5 in the authors' code.
        temperature: tau, in units of the score; it has the scale of the data set.
        level_offset: "formula", or "reference": t* - 1 in the place of t*, as the authors' code has it, so that 104 is
            the highest level for t* = 100 and a bias of 5.
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
        share: of t*; 0.5 is what a typical clean image gets from SSNI-N.
    """

    looks = False

    def __init__(self, share: float = 0.5) -> None:
        if not share >= 0:
            raise ValueError(f"share is {share}; it cannot be negative.")
        self.share = share

    def __call__(self, score: Tensor, t_star: float, reference: Tensor, noise: NoiseStream) -> Tensor:
        return torch.full_like(score, self.share * t_star)


class MeanLevels(LevelRule):
    """A control: for every image the mean level that ``rule`` gives the reference images.

    Args:
        rule: whose levels are averaged.
    """

    looks = False

    def __init__(self, rule: LevelRule) -> None:
        self.rule = rule

    def __call__(self, score: Tensor, t_star: float, reference: Tensor, noise: NoiseStream) -> Tensor:
        return self.rule(reference, t_star, reference, noise).mean().expand_as(score)


class ShuffledLevels(LevelRule):
    """A control: for each draw the level that ``rule`` gives to a reference image taken at random. The levels spread as
    SSNI's do, and know nothing of the image.

    Args:
        rule: whose levels are drawn.
    """

    looks = False
    random = True

    def __init__(self, rule: LevelRule) -> None:
        self.rule = rule

    def __call__(self, score: Tensor, t_star: float, reference: Tensor, noise: NoiseStream) -> Tensor:
        chosen = (noise.fork("levels").uniform((), dtype=torch.float64) * len(reference)).long()
        return self.rule(reference, t_star, reference, noise)[chosen.clamp_max(len(reference) - 1)]
