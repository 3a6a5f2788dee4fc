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
    """Gives every image its own noise level in each round of another purifier, chosen by a perturbation score.

    The score is computed from the input image with fresh noise at every call, and compared with stored scores of
    held-out images, never with the batch. Rounded levels are constants in the exact gradient (as in the authors'
    attack). An attack can treat them in other ways, through a `Variant` as its surrogate:

    * ``rounding: straight_through``: levels are rounded, and the derivative is that of the levels before rounding.
    * ``rounding: false``: levels are not rounded, and differentiated. The surrogate then differs from the defence.

    With ``context: clean``, an attack holds the levels of the clean image fixed.

    Args:
        purifier: DiffPure, GNSP or GDMP.
        levels: from scores to levels: SigmoidLevels (SSNI-N), LinearLevels (SSNI-L), or a control.
        reference: the stored scores.
        statistic: EPS or SingleScore; by default EPS at 20 times.
        rounding: whether levels are rounded to whole noising steps, as published; or "straight_through".
        at_least: the lowest level in noising steps, in 0..1000. The authors' code takes one noising and one denoising
            step even at level 0; at_least = 1 does the same.
        scorer: the diffusion model of the score; None is the purifier's. The authors' code uses one network in two
            ways: in continuous time for the score, on the table of levels to purify.

    Raises:
        ValueError: if the stored scores were made with another denoiser or statistic, at_least is out of range, or
            rounding is straight_through on a tabulated schedule, which has no derivative between its levels.
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
        """The purifier's quantities, and ``mean_level``, the mean level of the reference images in the first round."""
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
        """ "levels" (B, rounds) in noising steps out of 1000, and "score" (B,) where the level rule depends on it."""
        with torch.set_grad_enabled(self.rounding is not True and torch.is_grad_enabled()):
            score = self.score(x, noise) if self.levels.looks else x.new_zeros(len(x), dtype=torch.float64)
            reference = self.reference.scores.to(x.device)
            real = torch.stack([self.levels(score, r.t_star, reference, noise) for r in self.purifier.rounds], dim=1)
            levels = real = real.clamp(float(self.at_least), float(MAX_TIME))
            if self.rounding:
                levels = rounded = real.detach().round()
                if self.rounding == "straight_through":
                    # The value is exactly rounded + 0, the derivative is that of real.
                    levels = rounded + (real - real.detach())
        return {"levels": levels, "score": score} if self.levels.looks else {"levels": levels}

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        inner = [name for name in wants if name in self.purifier.offers]
        purified = self.purifier.walk(x, context["levels"], noise, inner)
        own = {"levels": context["levels"].detach(), "score": context.get("score")}
        found = {name: value for name, value in own.items() if name in wants and value is not None}
        return Purified(purified.images, {**purified.trace, **found})
