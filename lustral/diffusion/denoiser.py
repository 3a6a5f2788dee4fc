"""The convention for all diffusion networks: a denoiser returns the posterior mean of the clean image."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lustral.diffusion.schedules import NoiseSchedule, coefficient


class Denoiser(nn.Module, ABC):
    """E[x_0 | x_t] of a diffusion model, in diffusion space ([-1, 1]).

    Subclasses implement `forward`; noise and score are derived from it here.

    Attributes:
        schedule: the schedule of x_t = alpha(t) x_0 + sigma(t) noise in which ``x_t`` and ``t`` are given.
        image_shape: (C, H, W) of the images.
        learns_variance: whether the network also predicts the variance of a reverse step (`mean_and_variance`).
        is_consistency_function: whether `forward` gives the beginning of the flow's trajectory through x_t instead of
            a posterior mean: one call from pure noise, at t = 1000, is a sample.
    """

    schedule: NoiseSchedule
    image_shape: tuple[int, int, int]
    learns_variance: bool = False
    is_consistency_function: bool = False

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The posterior mean of x_0, (B, C, H, W), from ``x_t`` (B, C, H, W) and ``t``, () or (B,), in noising steps
        out of 1000 (see `schedules`)."""

    def mean_and_variance(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior mean and the learned v in [0, 1], (B, C, H, W) each, in one network call: the log variance of a
        reverse step is v log beta + (1 - v) log beta tilde (Nichol and Dhariwal 2021, equation 15).

        Raises:
            ValueError: if the network has learned no variance.
        """
        raise ValueError(f"{type(self).__name__} has learned no variance: choose variance small or large.")

    def noise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """E[noise | x_t] = (x_t - alpha E[x_0 | x_t]) / sigma."""
        return self.schedule_noise(x_t, self(x_t, t), t)

    def score(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The gradient of log p_t at x_t: -E[noise | x_t] / sigma (Tweedie's formula)."""
        return -self.noise(x_t, t) / coefficient(self.schedule.sigma(t), x_t)

    def schedule_noise(self, x_t: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
        """The noise with which ``x_0`` is perturbed to ``x_t`` at time ``t``: (x_t - alpha x_0) / sigma."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return (x_t - coefficient(alpha, x_t) * x_0) / coefficient(sigma, x_t)


class RememberedDenoiser(Denoiser):
    """A denoiser that caches its latest answer, and returns it if the same image and time are passed in again.

    It is made for one reverse step, in which a guidance and a solver share one network call. If no graph is needed, the
    cached answer is returned without its graph; if one is needed, only to the very tensor that it was computed from.

    Args:
        denoiser: the cached denoiser; not registered as a submodule.
    """

    denoiser: Denoiser

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        object.__setattr__(self, "denoiser", denoiser)
        self.schedule, self.image_shape = denoiser.schedule, denoiser.image_shape
        self.learns_variance = denoiser.learns_variance
        self.is_consistency_function = denoiser.is_consistency_function
        self._asked: tuple[Tensor, int, Tensor] | None = None
        self._answer: tuple[Tensor, ...] = ()
        self._has_graph = False

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self._remembered(x_t, t)[0]

    def mean_and_variance(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if not self.learns_variance:
            return self.denoiser.mean_and_variance(x_t, t)  # refuses
        mean, variance = self._remembered(x_t, t)
        return mean, variance

    def _remembered(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        graph = torch.is_grad_enabled() and x_t.requires_grad
        if (
            self._asked is not None
            and self._same(x_t, t)
            and (not graph or (self._has_graph and self._asked[0] is x_t))
        ):
            return self._answer if graph else tuple(part.detach() for part in self._answer)
        ask = self.denoiser.mean_and_variance if self.learns_variance else self.denoiser
        found = ask(x_t, t)
        self._asked, self._answer = (x_t, x_t._version, t), found if isinstance(found, tuple) else (found,)
        self._has_graph = graph
        return self._answer

    def _same(self, x_t: Tensor, t: Tensor) -> bool:
        """Whether ``x_t`` and ``t`` are those of the cached answer: the same memory, not written to since. (Comparing
        values would synchronise with the device.)"""
        assert self._asked is not None
        before, version, time = self._asked
        return (
            time is t
            and before.data_ptr() == x_t.data_ptr()
            and before.shape == x_t.shape
            and before.stride() == x_t.stride()
            and x_t._version == version
        )


def to_diffusion(x: Tensor) -> Tensor:
    """Images ``x`` in [0, 1] mapped to diffusion space, [-1, 1]."""
    return 2.0 * x - 1.0


def from_diffusion(x: Tensor) -> Tensor:
    """Images ``x`` in diffusion space, [-1, 1], mapped to [0, 1], without clamping."""
    return (x + 1.0) / 2.0
