"""Reverse steps from time ``t`` to an earlier ``s``, as short pure functions of (x_t, x_0 estimate or score, noise).

A `Solver` is such a step with its options. It makes one network call per step, `Heun` two.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lustral.diffusion.denoiser import Denoiser
from lustral.diffusion.schedules import MAX_TIME, DiscreteSchedule, NoiseSchedule, VPSchedule, coefficient

Variance = Literal["small", "large", "learned"]


class Level(NamedTuple):
    """A noise level: x_t = alpha x_0 + sigma noise. Float64, () or (B,)."""

    alpha: Tensor
    sigma: Tensor

    @property
    def ratio(self) -> Tensor:
        """sigma / alpha, the standard deviation of the noise at the image's own scale."""
        return self.sigma / self.alpha


def level(schedule: NoiseSchedule, t: Tensor) -> Level:
    """The level of ``schedule`` at ``t``."""
    return Level(schedule.alpha(t), schedule.sigma(t))


def added_variance(at_t: Level, at_s: Level) -> Tensor:
    """The variance of the noise that the forward process adds from s to t: the step's beta, if variance-preserving."""
    return (at_t.sigma.square() - (at_t.alpha / at_s.alpha).square() * at_s.sigma.square()).clamp_min(0.0)


def euler_maruyama(x: Tensor, score: Tensor, beta: Tensor, h: Tensor, noise: Tensor) -> Tensor:
    """x + h (beta/2 x + beta score) + sqrt(beta h) noise: one step of the reverse VP-SDE (Song et al. 2021,
    equation 6)."""
    drift = coefficient(0.5 * beta * h, x) * x + coefficient(beta * h, x) * score
    return x + drift + coefficient((beta * h).sqrt(), x) * noise


def flow_euler(x: Tensor, score: Tensor, beta: Tensor, h: Tensor) -> Tensor:
    """x + h beta/2 (x + score): one step of the VP-SDE's probability flow ODE (Song et al. 2021, equation 13)."""
    return x + coefficient(0.5 * beta * h, x) * (x + score)


def ddim(x_0: Tensor, eps: Tensor, at_t: Level, at_s: Level, eta: float, noise: Tensor) -> Tensor:
    """Song et al. 2021, equation 12: eta = 0 is deterministic, eta = 1 ancestral sampling with beta tilde."""
    c_noise = eta * added_variance(at_t, at_s).sqrt() * at_s.sigma / at_t.sigma
    c_eps = (at_s.sigma.square() - c_noise.square()).clamp_min(0.0).sqrt()
    mean = coefficient(at_s.alpha, x_0) * x_0 + coefficient(c_eps, x_0) * eps
    return mean + coefficient(c_noise, x_0) * noise


def posterior(x: Tensor, x_0: Tensor, at_t: Level, at_s: Level) -> Tensor:
    """The mean of q(x_s | x_t, x_0), Ho et al. 2020, equation 7."""
    share = added_variance(at_t, at_s) / at_t.sigma.square()
    c_x = at_t.alpha / at_s.alpha * (at_s.sigma / at_t.sigma).square()
    return coefficient(at_s.alpha * share, x) * x_0 + coefficient(c_x, x) * x


def posterior_variance(at_t: Level, at_s: Level) -> Tensor:
    """The variance of q(x_s | x_t, x_0): beta tilde."""
    return added_variance(at_t, at_s) * (at_s.sigma / at_t.sigma).square()


def learned_std(v: Tensor, beta: Tensor, beta_tilde: Tensor) -> Tensor:
    """The standard deviation whose log variance is v log beta + (1 - v) log beta tilde (Nichol and Dhariwal 2021,
    equation 15), of the shape of v."""
    low, high = beta_tilde.log(), beta.log()
    return (0.5 * (coefficient(low, v) + v * coefficient(high - low, v))).exp()


def _root(variance: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0: the true one is infinite, and would make the gradient of a level NaN."""
    positive = variance > 0
    return torch.where(positive, torch.where(positive, variance, 1.0).sqrt(), 0.0)


class Transition(NamedTuple):
    """A reverse step as a Gaussian.

    Attributes:
        mean: (B, C, H, W).
        std: float64, () or (B,); or (B, C, H, W) if it is learned.
        last: bool, () or (B,): whether the step leads to the clean image, where no noise is added.
    """

    mean: Tensor
    std: Tensor
    last: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """mean + std ``noise``; the mean in a last step."""
        std = self.std if self.std.ndim > 1 else coefficient(self.std, noise)
        return self.mean + coefficient((~self.last).double(), noise) * std * noise

    def guided(self, factor: Tensor) -> Tensor:
        """variance * ``factor``, with ``factor`` float64, () or (B,): the multiplier of a guidance's direction, which
        is added to the mean (Dhariwal and Nichol 2021, algorithm 1)."""
        if self.std.ndim > 1:
            return self.std.square() * coefficient(factor, self.std)
        return coefficient(self.std.square() * factor, self.mean)


def langevin(
    x: Tensor, score: Tensor, start: Tensor, h: float, rate: float, temperature: float, noise: Tensor, tether: float
) -> Tensor:
    """One Euler step of DiffPure's Langevin variant (Nie et al. 2022, appendix; LDSDE).

    dx = -rate/2 (-score + (x - start) / tether) dt + temperature sqrt(rate) dw: it samples near ``start``.

    Args:
        x, score, start, noise: (B, C, H, W) each, in diffusion space.
        h: dt of the step.
        rate: lambda, 1e-2 in the paper.
        temperature: eta, 5 in the paper; 1 samples p(x) exp(-|x - start|^2 / (2 tether)).
        tether: sigma^2, 1e-3 in the paper.
    """
    drift = 0.5 * rate * (score - (x - start) / tether)
    return x + h * drift + temperature * math.sqrt(rate * h) * noise


class Solver(ABC):
    """A reverse step with its options.

    Attributes:
        random: whether a step adds noise.
    """

    random: bool = True

    def check(self, denoiser: Denoiser) -> None:  # noqa: B027  (most can follow any)
        """Refuse a denoiser that this solver cannot be used with.

        Raises:
            ValueError: if it cannot.
        """

    def times(self, schedule: NoiseSchedule, t_start: float, num_steps: int) -> Tensor:
        """(num_steps + 1,) float64 times of a sampling from ``t_start``, descending to the end of the process.

        Raises:
            ValueError: if a number is out of its range.
        """
        return schedule.grid(t_start, num_steps)

    @abstractmethod
    def step(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        """x_s from ``x`` = x_t, (B, C, H, W) in diffusion space; ``t`` > ``s``, () or (B,); ``noise`` is standard
        normal, of the shape of ``x``."""


class _OnVP(Solver):
    """A solver for the continuous VP-SDE."""

    def check(self, denoiser: Denoiser) -> None:
        if not isinstance(denoiser.schedule, VPSchedule):
            raise ValueError(
                f"The {type(self).__name__} solver follows the continuous VP-SDE, but the denoiser's schedule is "
                f"{type(denoiser.schedule).__name__}: choose the Ancestral or DDIM solver, or ask the denoiser on it "
                "(schedule_type: vp)."
            )


class EulerMaruyama(_OnVP):
    """Euler-Maruyama steps of the reverse VP-SDE, DiffPure's main method; drift and noise are evaluated at the larger
    time of the step."""

    def step(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        assert isinstance(denoiser.schedule, VPSchedule)
        return euler_maruyama(x, denoiser.score(x, t), denoiser.schedule.beta(t), (t - s) / MAX_TIME, noise)


class FlowEuler(_OnVP):
    """Euler steps of the VP-SDE's probability flow ODE in t: DiffPure's ODE variant. (`DDIM` solves the same ODE by
    Euler steps in the noise ratio, which is more accurate.)"""

    random = False

    def step(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        assert isinstance(denoiser.schedule, VPSchedule)
        return flow_euler(x, denoiser.score(x, t), denoiser.schedule.beta(t), (t - s) / MAX_TIME)


class Heun(Solver):
    """Second-order steps of the probability flow ODE, with churn: Karras et al. 2022, algorithm 2.

    Churn needs a continuous schedule. A step makes two network calls; a step to sigma = 0 is an Euler step with one.

    Args:
        churn: S_churn / N, in [0, sqrt(2) - 1]: the noise ratio is raised by this share before each step; 0 is
            deterministic.
        churn_min: S_tmin, the lowest noise ratio at which it is raised.
        churn_max: S_tmax, the highest noise ratio at which it is raised.
        churn_noise: S_noise, the factor of the added noise, not negative.

    Raises:
        ValueError: if an option is out of its range; in `check`, if there is churn on a tabulated schedule.
    """

    MAX_CHURN = math.sqrt(2.0) - 1.0

    def __init__(
        self, churn: float = 0.0, churn_min: float = 0.0, churn_max: float = math.inf, churn_noise: float = 1.0
    ) -> None:
        if not 0 <= churn <= self.MAX_CHURN + 1e-6:
            raise ValueError(f"churn is {churn}; it lies in [0, sqrt(2) - 1 = {self.MAX_CHURN:.4f}].")
        if not (0 <= churn_min < churn_max and churn_noise >= 0):
            raise ValueError(
                f"churn_min = {churn_min} must lie below churn_max = {churn_max}, and churn_noise = {churn_noise} "
                "cannot be negative."
            )
        self.churn, self.churn_min, self.churn_max, self.churn_noise = churn, churn_min, churn_max, churn_noise
        self.random = churn > 0

    def check(self, denoiser: Denoiser) -> None:
        if self.churn > 0 and isinstance(denoiser.schedule, DiscreteSchedule):
            raise ValueError(
                f"Heun with churn raises the noise to levels that a {type(denoiser.schedule).__name__} does not have: "
                "set churn to 0, or ask the denoiser on a continuous schedule (schedule_type: vp)."
            )

    def step(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        schedule = denoiser.schedule
        at_t, at_s = level(schedule, t), level(schedule, s)
        ratio, to = at_t.ratio, at_s.ratio
        now = x / coefficient(at_t.alpha, x)  # the image at its own scale, where the flow is (x - x_0) / ratio
        if self.random:
            rises = (ratio >= self.churn_min) & (ratio <= self.churn_max)
            # At most the schedule's last noise ratio: the network was not trained beyond it.
            end = schedule.noise_ratio(torch.full_like(ratio, float(MAX_TIME)))
            raised = torch.where(rises, (ratio * (1.0 + self.churn)).clamp_max(end), ratio)
            extra = (raised.square() - ratio.square()).clamp_min(0.0).sqrt()
            now, ratio = now + coefficient(self.churn_noise * extra, x) * noise, raised

        slope = (now - self._clean(denoiser, now, ratio)) / coefficient(ratio, x)
        euler = now + coefficient(to - ratio, x) * slope
        if to.ndim == 0 and to == 0:
            return coefficient(at_s.alpha, x) * euler
        # Where times differ by row, rows that arrive at 0 keep their Euler step; the level used for them is arbitrary.
        arrives = to == 0
        ahead_at = torch.where(arrives, ratio, to)
        ahead = (euler - self._clean(denoiser, euler, ahead_at)) / coefficient(ahead_at, x)
        half = torch.where(arrives, 0.0, 0.5) * (to - ratio)
        return coefficient(at_s.alpha, x) * (euler + coefficient(half, x) * (ahead - slope))

    @staticmethod
    def _clean(denoiser: Denoiser, x: Tensor, ratio: Tensor) -> Tensor:
        """The posterior mean of x_0 from ``x`` = x_t / alpha, at this noise ratio."""
        t = denoiser.schedule.time(ratio)
        return denoiser(coefficient(denoiser.schedule.alpha(t), x) * x, t)


class DDIM(Solver):
    """DDIM with ``eta`` in [0, 1]: 0 is deterministic, 1 is DDPM (Song et al. 2021); also the update of GNSP."""

    def __init__(self, eta: float = 0.0) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta is {eta}; it lies in [0, 1] (0 is DDIM, 1 is DDPM).")
        self.eta = eta
        self.random = eta > 0

    def step(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        x_0 = denoiser(x, t)
        eps = denoiser.schedule_noise(x, x_0, t)
        return ddim(x_0, eps, level(denoiser.schedule, t), level(denoiser.schedule, s), self.eta, noise)


class Ancestral(Solver):
    """DDPM's ancestral sampling (Ho et al. 2020), on any grid of times. A step to the clean image adds no noise.

    Args:
        variance: "small" (beta tilde), "large" (beta), or "learned" between them (Nichol and Dhariwal 2021).
        clip_denoised: clamp the estimate of x_0 to [-1, 1], as guided-diffusion does; its gradient is then zero
            where it saturates.

    Raises:
        ValueError: if ``variance`` is none of these; in `check`, if it is "learned" and the denoiser has learned none.
    """

    def __init__(self, variance: Variance = "small", clip_denoised: bool = False) -> None:
        if variance not in get_args(Variance):
            raise ValueError(f"variance is {variance!r}; it may be {', '.join(get_args(Variance))}.")
        self.variance: Variance = variance
        self.clip_denoised = clip_denoised

    def check(self, denoiser: Denoiser) -> None:
        if self.variance == "learned" and not denoiser.learns_variance:
            raise ValueError(
                f"The Ancestral solver is to take the learned variance, but this {type(denoiser).__name__} has learned "
                "none: choose variance small or large."
            )

    def step(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        return self.transition(denoiser, x, t, s).draw(noise)

    def transition(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, before: Tensor | None = None
    ) -> Transition:
        """The step from ``x`` = x_t at ``t`` to ``s`` as a Gaussian; one network call.

        Args:
            before: the time at which the preceding step, which led to ``t``, began. In a step to the clean image, beta
                tilde is 0 and has no logarithm; with ``before``, that of the preceding step takes its place: "large"
                is then equal to it, and "learned" lies between it and beta, as in the original code (Ho et al. 2020).
                It affects guidance only, since this step adds no noise.
        """
        low, high = self.span(denoiser.schedule, t, s, before)
        if self.variance == "learned":
            x_0, v = denoiser.mean_and_variance(x, t)
            std = learned_std(v, high, low)
        else:
            x_0, std = denoiser(x, t), _root(high)
        if self.clip_denoised:
            x_0 = x_0.clamp(-1.0, 1.0)
        at_t, at_s = level(denoiser.schedule, t), level(denoiser.schedule, s)
        return Transition(posterior(x, x_0, at_t, at_s), std, at_s.sigma == 0)

    def span(
        self, schedule: NoiseSchedule, t: Tensor, s: Tensor, before: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The smallest and the largest variance of a step, float64; they are equal if the variance is not learned."""
        at_t, at_s = level(schedule, t), level(schedule, s)
        beta, tilde = added_variance(at_t, at_s), posterior_variance(at_t, at_s)
        if self.variance == "small":
            return tilde, tilde
        last, first = at_s.sigma == 0, beta
        if before is not None:
            found = posterior_variance(level(schedule, before), at_t)
            first = torch.where(found > 0, found, beta)  # there is no level above the last one
        if self.variance == "large":
            beta = torch.where(last, first, beta)
            return beta, beta
        return torch.where(last, first, tilde), beta
