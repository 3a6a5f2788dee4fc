"""The one convention for diffusion networks: a denoiser returns the posterior mean of the clean image."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lustral.diffusion.schedules import NoiseSchedule, coefficient


class Denoiser(nn.Module, ABC):
    """E[x_0 | x_t] of a diffusion model, in diffusion space ([-1, 1]).

    Subclasses compute `forward`; noise and score are derived from it here and nowhere else.

    Attributes:
        schedule: the noise schedule that the network was trained for.
        image_shape: (C, H, W) of the images.
        learns_variance: whether `mean_and_variance` gives the variance of a reverse step too.
    """

    schedule: NoiseSchedule
    image_shape: tuple[int, int, int]
    learns_variance: bool = False

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The posterior mean of x_0. ``x_t`` (B, C, H, W); ``t`` () or (B,) in 1000ths (see `schedules`)."""

    def mean_and_variance(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior mean, and the learned v in [0, 1], (B, C, H, W): the log variance of a reverse step is
        v log beta + (1 - v) log beta tilde (Nichol and Dhariwal 2021, equation 15). One network call."""
        raise ValueError(f"{type(self).__name__} has learned no variance: choose variance small or large.")

    def noise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """E[noise | x_t] = (x_t - alpha E[x_0 | x_t]) / sigma."""
        return self.schedule_noise(x_t, self(x_t, t), t)

    def score(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The gradient of log p_t at x_t: -E[noise | x_t] / sigma (Tweedie's formula)."""
        return -self.noise(x_t, t) / coefficient(self.schedule.sigma(t), x_t)

    def schedule_noise(self, x_t: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
        """The noise that takes ``x_0`` to ``x_t``."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return (x_t - coefficient(alpha, x_t) * x_0) / coefficient(sigma, x_t)


class RememberedDenoiser(Denoiser):
    """A denoiser that answers the same question once: of the latest image and time it remembers the answer.

    It lives as long as one reverse step, in which a guidance and a solver share its one network call. An image that is
    another view of the same values gets the answer without its graph.

    Args:
        denoiser: who is asked; not registered as a part.
    """

    denoiser: Denoiser

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        object.__setattr__(self, "denoiser", denoiser)
        self.schedule, self.image_shape = denoiser.schedule, denoiser.image_shape
        self.learns_variance = denoiser.learns_variance
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
        """Whether the question is the remembered one: the same memory, not written to since. (No look at values: that
        would wait for the device.)"""
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
    """[0, 1] images to diffusion space, [-1, 1]."""
    return 2.0 * x - 1.0


def from_diffusion(x: Tensor) -> Tensor:
    """Diffusion space, [-1, 1], to [0, 1] images. Does not clamp."""
    return (x + 1.0) / 2.0
