"""SSNI: sample-specific noise injection (Sun et al., ICML 2025). docs/ssni.md."""

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor

from lustral.diffusion import Context, Denoiser, DiscreteSchedule, to_diffusion
from lustral.diffusion.perturbation import EPS, PerturbationScore, perturbation
from lustral.diffusion.schedules import MAX_TIME
from lustral.noise import NoiseStream
from lustral.purifiers.base import Purified, Purifier
from lustral.purifiers.levels import LevelRule
from lustral.purifiers.reference import StoredScores
from lustral.purifiers.rounds import RoundPurifier


class SSNI(Purifier):
    """Gives every image its own noise level, by how perturbed it looks, in each round of another purifier.

    The score is that of the image as it came in, drawn afresh at every call, and compared with stored scores of
    held-out images, never with the batch. Rounded levels are constants to the exact gradient (the authors' attack); an
    attack looks at them otherwise through a `Variant`:

    * ``rounding: straight_through``: levels rounded, the derivative as if they were not.
    * ``rounding: false``: levels not rounded, and differentiated. What the attack sees is then not quite the defence.

    or holds those of the clean image (``context: clean``).

    Args:
        purifier: DiffPure, GNSP or GDMP.
        levels: from scores to levels: SigmoidLevels (SSNI-N), LinearLevels (SSNI-L), or a control.
        reference: the stored scores.
        statistic: EPS or SingleScore; by default EPS at 20 times.
        rounding: whether levels are rounded to whole noising steps, as published; or "straight_through".
        at_least: the lowest level. The authors' code noises and denoises by one step even at level 0: 1 does so.
        scorer: the diffusion model that scores; None is the purifier's. The authors' code asks one network in two ways:
            in continuous time for the score, on the table to purify.

    Raises:
        ValueError: if the stored scores belong to another denoiser or statistic, or levels are to be differentiated
            where the schedule is a table: between its levels there is nothing to differentiate.
    """

    ragged = True

    def __init__(
        self,
        purifier: RoundPurifier,
        levels: LevelRule,
        reference: StoredScores,
        statistic: None | PerturbationScore = None,
        rounding: bool | Literal["straight_through"] = True,
        at_least: int = 0,
        scorer: None | Denoiser = None,
    ) -> None:
        super().__init__()
        if not 0 <= at_least <= MAX_TIME:
            raise ValueError(f"at_least is {at_least}; it lies in 0..{MAX_TIME}.")
        self.purifier, self.levels, self.reference = purifier.eval(), levels, reference
        self.statistic = statistic or EPS()
        self.rounding, self.at_least = rounding, at_least
        self.scorer = None if scorer is None else scorer.eval().requires_grad_(False)
        reference.check(self._scorer, self.statistic)
        self.random = purifier.random or (levels.looks and self.statistic.random) or levels.random
        if rounding == "straight_through" and isinstance(purifier.denoiser.schedule, DiscreteSchedule):
            raise ValueError(
                "rounding is straight_through, but between the levels of a table there is nothing to differentiate: "
                "ask the purifier's denoiser on a continuous schedule (schedule_type: vp), or leave levels rounded."
            )
        own = {"levels": "(B, rounds) the level of each round, in noising steps out of 1000, without a graph"}
        if levels.looks:
            own["score"] = "(B,) the norm of the score that chose them; differentiable where levels are not rounded"
        self.offers, self.holds = {**purifier.offers, **own}, frozenset(own)

    def derived(self) -> dict[str, float]:
        """The purifier's, and ``mean_level`` of the first round over the reference images."""
        scores = self.reference.scores
        noise = NoiseStream(0, torch.arange(len(scores)))
        mean = float(self.levels(scores, self.purifier.rounds[0].t_star, scores, noise).mean())
        return {**self.purifier.derived(), "mean_level": round(mean, 3)}

    def score(self, x: Tensor, noise: NoiseStream) -> Tensor:
        """(B,) float64 norms of the perturbation score of [0, 1] images (B, C, H, W)."""
        return perturbation(
            self.statistic, self._scorer, to_diffusion(x), noise.fork("score"), self.rows, self.runtime.graph_budget
        )

    @property
    def _scorer(self) -> Denoiser:
        return self.purifier.denoiser if self.scorer is None else self.scorer

    def prepare(self, x: Tensor, noise: NoiseStream) -> Context:
        """ "levels" (B, rounds) in steps out of 1000, and "score" (B,) where the rule looks at it."""
        with torch.set_grad_enabled(self.rounding is not True and torch.is_grad_enabled()):
            score = self.score(x, noise) if self.levels.looks else x.new_zeros(len(x), dtype=torch.float64)
            reference = self.reference.scores.to(x.device)
            real = torch.stack([self.levels(score, r.t_star, reference, noise) for r in self.purifier.rounds], dim=1)
            levels = real = real.clamp(float(self.at_least), float(MAX_TIME))
            if self.rounding:
                levels = rounded = real.detach().round()
                if self.rounding == "straight_through":
                    # The sum is rounded + 0 exactly, and its derivative that of the second part.
                    levels = rounded + (real - real.detach())
        return {"levels": levels, "score": score} if self.levels.looks else {"levels": levels}

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        inner = [name for name in wants if name in self.purifier.offers]
        purified = self.purifier.walk(x, context["levels"], noise, inner)
        own = {"levels": context["levels"].detach(), "score": context.get("score")}
        found = {name: value for name, value in own.items() if name in wants and value is not None}
        return Purified(purified.images, {**purified.trace, **found})
