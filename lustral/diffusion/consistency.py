"""Losses of consistency models: a network that maps every point of the flow's trajectory to its beginning is found by
asking that it maps two points of one trajectory to the same image.

f(x_t, t) is compared with f(x_r, r), r < t, which is a constant to the gradient. Where the two points come from (the
image and shared noise, or a step of a teacher's flow), how far they are from each other, and whose f the second is, is
what the methods differ in.
"""

import math
from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from lustral.diffusion.consistency_schedules import (
    FINISHED,
    Progress,
    adaptive_decay,
    adaptive_levels,
    doubling_levels,
    easy_earlier,
    karras_sigmas,
    lognormal_masses,
    stage_of,
)
from lustral.diffusion.denoiser import Denoiser
from lustral.diffusion.distances import Distance, PseudoHuber, SquaredDistance
from lustral.diffusion.losses import DiffusionLoss
from lustral.diffusion.schedules import MAX_TIME, DiscreteSchedule, EDMSchedule, coefficient
from lustral.diffusion.solvers import Heun
from lustral.noise import NoiseStream

LEAST_SHARE = 0.01
"""Of the levels drawn from a distribution, within a network's range."""


class Pair(NamedTuple):
    """Two noise levels for each image, (B,) float64: ``later`` t, and ``earlier`` r < t, which is 0 where the target is
    the image itself."""

    later: Tensor
    earlier: Tensor


def consistency_range(denoiser: Denoiser) -> EDMSchedule:
    """The schedule of a consistency function: its range of noise levels, sigma_min ... sigma_max.

    Raises:
        ValueError: if the denoiser is none, or is used on another schedule.
    """
    schedule = denoiser.schedule
    if not (denoiser.is_consistency_function and isinstance(schedule, EDMSchedule)):
        kind = "is no consistency function" if not denoiser.is_consistency_function else "is used on another schedule"
        raise ValueError(
            f"The {type(denoiser).__name__}, on a {type(schedule).__name__}, {kind}: take a network with "
            "preconditioning consistency on its own schedule (edm)."
        )
    return schedule


def evaluated(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    """f(x, sigma) for ``x`` (B, C, H, W), images at their own scale with noise of standard deviation ``sigma``, (B,)
    float64."""
    return denoiser(x, denoiser.schedule.time(sigma))


class ConsistencyLoss(DiffusionLoss):
    """weight(t, r) d(f(x_t, t), f(x_r, r)), without a gradient through the second.

    Both points have the same noise. Whoever trains sees to it that both calls drop the same units.

    Args:
        distance: d.
    """

    def __init__(self, distance: Distance) -> None:
        self.distance = distance

    def check(self, denoiser: Denoiser) -> None:
        consistency_range(denoiser)

    def target_decay(self, progress: Progress) -> None | float:
        """mu of the target network, whose f the second one is: target <- mu target + (1 - mu) network after each step.
        None: it is the network itself, and none is kept."""
        return None

    @abstractmethod
    def levels(self, schedule: EDMSchedule, noise: NoiseStream, progress: Progress) -> Pair:
        """Random levels of the range ``schedule`` for each row of ``noise``."""

    def weight(self, pair: Pair) -> Tensor:
        """(B,) float64 weights of the distances."""
        return torch.ones_like(pair.later)

    def earlier(self, x_0: Tensor, x_t: Tensor, pair: Pair, eps: Tensor) -> Tensor:
        """x_r on the trajectory of ``x_t``. Euler's step with the slope of x_0 itself gives exactly x_0 + r eps."""
        return x_0 + coefficient(pair.earlier, x_0) * eps

    def __call__(
        self,
        denoiser: Denoiser,
        x_0: Tensor,
        noise: NoiseStream,
        progress: Progress = FINISHED,
        target: None | Denoiser = None,
    ) -> Tensor:
        """(B,) losses for ``x_0`` (B, C, H, W) in diffusion space, at levels and with noise from ``noise`` (B rows).

        Args:
            denoiser: the consistency function that is trained.
            x_0: the images.
            noise: the stream of all random numbers.
            progress: how far the training is.
            target: the target network; None is ``denoiser``.
        """
        schedule = consistency_range(denoiser)
        pair = self.levels(schedule, noise.fork("time"), progress)
        eps = noise.fork("noise").normal(x_0.shape[1:], dtype=x_0.dtype)
        x_t = x_0 + coefficient(pair.later, x_0) * eps
        found = evaluated(denoiser, x_t, pair.later)
        with torch.no_grad():
            x_r = self.earlier(x_0, x_t, pair, eps)
            wanted = evaluated(target or denoiser, x_r, pair.earlier.clamp_min(schedule.sigma_min))
            wanted = torch.where((pair.earlier == 0)[:, None, None, None], x_0, wanted)
        distance = self.distance(found, wanted)
        return self.weight(pair).to(distance) * distance


class ConsistencyTrainingLoss(ConsistencyLoss):
    """CT (Song et al. 2023, algorithm 3): neighbours on Karras et al.'s grid, all intervals alike, whose number grows;
    the target network is an average with a decay that follows it.

    Args:
        start: s0, intervals at the beginning, at least 1 (the authors' 2; with 2 levels).
        end: s1, at least ``start``: there are s1 + 1 levels at the end (150 for CIFAR-10, 200 for ImageNet-64).
        decay: mu0 in (0, 1): 0.9 for CIFAR-10, 0.95 for ImageNet-64.
        distance: SquaredDistance (the default) or LPIPS.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(self, start: int = 2, end: int = 150, decay: float = 0.9, distance: None | Distance = None) -> None:
        super().__init__(distance or SquaredDistance())
        _check_growth(start, end)
        if not 0 < decay < 1:
            raise ValueError(f"decay is {decay}; it lies in (0, 1).")
        self.start, self.end, self.decay = start, end, decay

    def num_levels(self, progress: Progress) -> int:
        """The number of levels of the grid."""
        return adaptive_levels(progress, self.start, self.end)

    def target_decay(self, progress: Progress) -> float:
        return adaptive_decay(self.num_levels(progress), self.start, self.decay)

    def levels(self, schedule: EDMSchedule, noise: NoiseStream, progress: Progress) -> Pair:
        return _uniform_neighbours(_grid(schedule, self.num_levels(progress), noise), noise)


class ImprovedConsistencyTraining(ConsistencyLoss):
    """iCT (Song and Dhariwal 2024): neighbours on a grid whose number of levels doubles; ln sigma is about normal;
    weight 1 / (t - r); the network is its own target.

    Args:
        start: s0, intervals at the beginning, at least 1.
        end: s1, at least ``start``; intervals at the end.
        mean: mean of ln sigma (P_mean).
        std: standard deviation of ln sigma (P_std), positive.
        distance: PseudoHuber (the default), whose norm is that of the whole image.

    Raises:
        ValueError: if a number is out of its range; in `check`, if next to no level lies in the network's.
    """

    def __init__(
        self,
        start: int = 10,
        end: int = 1280,
        mean: float = -1.1,
        std: float = 2.0,
        distance: None | Distance = None,
    ) -> None:
        super().__init__(distance or PseudoHuber())
        _check_growth(start, end)
        _check_std(std)
        self.start, self.end, self.mean, self.std = start, end, mean, std

    def check(self, denoiser: Denoiser) -> None:
        super().check(denoiser)
        _check_reach(consistency_range(denoiser), self.mean, self.std)

    def num_levels(self, progress: Progress) -> int:
        """The number of levels of the grid."""
        return doubling_levels(progress, self.start, self.end)

    def levels(self, schedule: EDMSchedule, noise: NoiseStream, progress: Progress) -> Pair:
        sigmas = _grid(schedule, self.num_levels(progress), noise)
        upto = lognormal_masses(sigmas, self.mean, self.std).cumsum(0)
        uniform = noise.uniform((), dtype=torch.float64)
        index = torch.searchsorted(upto, uniform.contiguous()).clamp_max(len(upto) - 1)
        return Pair(sigmas[index + 1], sigmas[index])

    def weight(self, pair: Pair) -> Tensor:
        return 1.0 / (pair.later - pair.earlier)


class EasyConsistencyTuning(ConsistencyLoss):
    """ECT (Geng et al. 2025): ln t is normal, and r = t (1 - (1 + 8 sigmoid(-t)) / q^(stage + 1)), 0 where that is
    negative; weight 1 / (t - r); the network is its own target.

    Where r = 0 the target is the image, so the first stage with q = 2 trains a diffusion model at levels below about 2.
    Levels above sigma_max are taken at it, where generation starts.

    Args:
        q: how much closer r comes to t in each stage, above 1: 2 in stages, 256 in one.
        num_stages: stages of equal length, at least 1.
        mean: mean of ln t (P_mean).
        std: standard deviation of ln t (P_std), positive.
        distance: PseudoHuber with c = 0 by default.

    Raises:
        ValueError: if a number is out of its range; in `check`, if next to no level lies in the network's.
    """

    def __init__(
        self,
        q: float = 2.0,
        num_stages: int = 8,
        mean: float = -1.1,
        std: float = 2.0,
        distance: None | Distance = None,
    ) -> None:
        super().__init__(distance or PseudoHuber(c=0.0))
        if not (q > 1 and num_stages >= 1):
            raise ValueError(f"q = {q} must be above 1 and num_stages = {num_stages} at least 1.")
        _check_std(std)
        self.q, self.num_stages, self.mean, self.std = q, num_stages, mean, std

    def check(self, denoiser: Denoiser) -> None:
        super().check(denoiser)
        _check_reach(consistency_range(denoiser), self.mean, self.std)

    def levels(self, schedule: EDMSchedule, noise: NoiseStream, progress: Progress) -> Pair:
        later = (self.mean + self.std * noise.normal((), dtype=torch.float64)).exp()
        later = later.clamp(schedule.sigma_min, schedule.sigma_max)
        earlier = easy_earlier(later, stage_of(progress, self.num_stages), self.q)
        # The trajectory is followed down to sigma_min only, where f is the identity.
        return Pair(later, torch.where(earlier < schedule.sigma_min, 0.0, earlier))

    def weight(self, pair: Pair) -> Tensor:
        return 1.0 / (pair.later - pair.earlier)


class ConsistencyDistillation(ConsistencyLoss):
    """CD (Song et al. 2023, algorithm 2): x_r is one Heun step of a diffusion model's flow from x_t, two network calls.

    Args:
        teacher: the diffusion model, in continuous time; it is not trained.
        num_levels: of Karras et al.'s grid, at least 2: 18 for CIFAR-10, 40 for ImageNet-64.
        mu: decay of the target network in [0, 1); 0 is the network itself (CIFAR-10), 0.95 for ImageNet-64.
        distance: SquaredDistance (the default) or LPIPS.

    Raises:
        ValueError: if a number is out of its range, or the teacher has random weights or is no diffusion model in
            continuous time; in `check`, if its images differ.
    """

    def __init__(
        self, teacher: Denoiser, num_levels: int = 18, mu: float = 0.0, distance: None | Distance = None
    ) -> None:
        super().__init__(distance or SquaredDistance())
        if num_levels < 2 or not 0 <= mu < 1:
            raise ValueError(f"num_levels = {num_levels} must be at least 2, and mu = {mu} in [0, 1).")
        if getattr(teacher, "weights", "") is None:
            raise ValueError("The teacher's weights are random: name a weights file (lustral.networks.load_denoiser).")
        if teacher.is_consistency_function or isinstance(teacher.schedule, DiscreteSchedule):
            raise ValueError(
                f"The teacher, a {type(teacher).__name__} on a {type(teacher.schedule).__name__}, must be a diffusion "
                "model in continuous time: choose another, or ask it on one (schedule_type: vp)."
            )
        self.teacher, self.num_levels, self.mu = teacher.eval().requires_grad_(False), num_levels, mu
        self._flow = Heun()

    def check(self, denoiser: Denoiser) -> None:
        super().check(denoiser)
        top = torch.tensor(float(MAX_TIME), dtype=torch.float64)
        highest, asked = float(self.teacher.schedule.noise_ratio(top)), consistency_range(denoiser).sigma_max
        if highest < asked * (1 - 1e-6):
            raise ValueError(
                f"The teacher knows noise levels up to {highest:g} and the network's go to {asked:g}: set sigma_max of "
                "the network to the former, or choose another teacher."
            )
        if tuple(self.teacher.image_shape) != tuple(denoiser.image_shape):
            raise ValueError(
                f"The teacher's images are {tuple(self.teacher.image_shape)} and the network's "
                f"{tuple(denoiser.image_shape)} (C, H, W): choose a teacher of the same data."
            )

    def target_decay(self, progress: Progress) -> None | float:
        return self.mu or None

    def levels(self, schedule: EDMSchedule, noise: NoiseStream, progress: Progress) -> Pair:
        return _uniform_neighbours(_grid(schedule, self.num_levels, noise), noise)

    def earlier(self, x_0: Tensor, x_t: Tensor, pair: Pair, eps: Tensor) -> Tensor:
        teacher, schedule = self.teacher.to(x_t.device), self.teacher.schedule
        t, r = schedule.time(pair.later), schedule.time(pair.earlier)
        x_r = self._flow.step(teacher, coefficient(schedule.alpha(t), x_t) * x_t, t, r, torch.zeros_like(x_t))
        return x_r / coefficient(schedule.alpha(r), x_t)


def _check_growth(start: int, end: int) -> None:
    if not 1 <= start <= end:
        raise ValueError(f"start = {start} must be at least 1, and end = {end} no less: they count intervals.")


def _check_std(std: float) -> None:
    if not std > 0:
        raise ValueError(f"std is {std}; the standard deviation of ln sigma must be positive.")


def _check_reach(schedule: EDMSchedule, mean: float, std: float) -> None:
    """Refuse a distribution of ln sigma that next to never gives a level of the schedule."""
    ends = torch.tensor([schedule.sigma_min, schedule.sigma_max], dtype=torch.float64)
    share = float(torch.erf((ends.log() - mean) / (math.sqrt(2.0) * std)).diff()) / 2.0
    if not share >= LEAST_SHARE:
        raise ValueError(
            f"mean = {mean} and std = {std} of ln sigma put {share:.2g} of the levels between {schedule.sigma_min} and "
            f"{schedule.sigma_max}, where this consistency function is: at least {LEAST_SHARE} must lie there."
        )


def _grid(schedule: EDMSchedule, num_levels: int, noise: NoiseStream) -> Tensor:
    """Karras et al.'s levels of the range, on the device of ``noise``."""
    sigmas = karras_sigmas(num_levels, schedule.sigma_min, schedule.sigma_max, schedule.rho)
    return sigmas.to(noise.index.device, non_blocking=True)


def _uniform_neighbours(sigmas: Tensor, noise: NoiseStream) -> Pair:
    """Two neighbours on a grid, each interval alike."""
    intervals = len(sigmas) - 1
    index = (noise.uniform((), dtype=torch.float64) * intervals).long().clamp_max(intervals - 1)
    return Pair(sigmas[index + 1], sigmas[index])
