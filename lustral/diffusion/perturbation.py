"""Perturbation scores: statistics of a diffusion model's score that measure how perturbed an image is."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from lustral.diffusion.denoiser import Denoiser
from lustral.diffusion.trajectory import Context, unroll
from lustral.noise import NoiseStream


class PerturbationScore(ABC):
    """A vector for each image, the sum of terms that take one network call each; the statistic is the vector's norm.

    Attributes:
        random: whether the terms use noise.
        num_calls: the number of terms.
    """

    random: bool = True
    num_calls: int

    @abstractmethod
    def term(self, denoiser: Denoiser, i: int, x: Tensor, noise: Tensor) -> Tensor:
        """Term ``i``, (B, C, H, W), for images ``x`` (B, C, H, W) in diffusion space; ``noise`` is standard normal, of
        the shape of ``x``."""


class EPS(PerturbationScore):
    """The expected perturbation score (Zhang et al. 2023): the mean of the score of x_t over the times t = spacing, 2
    spacing, ..., T' spacing, with one noise sample per time.

    Args:
        num_times: T', 20 for CIFAR-10 and 50 for ImageNet; at least 1.
        spacing: between times, in noising steps out of 1000; positive, and at most 1000 / T'.
    """

    def __init__(self, num_times: int = 20, spacing: float = 1.0) -> None:
        if num_times < 1 or not 0 < spacing * num_times <= 1000:
            raise ValueError(
                f"num_times = {num_times} and spacing = {spacing}: there must be at least one time, and the last one, "
                "their product, lies in (0, 1000]."
            )
        self.num_times, self.spacing = num_times, spacing
        self.num_calls = num_times

    def term(self, denoiser: Denoiser, i: int, x: Tensor, noise: Tensor) -> Tensor:
        t = torch.tensor((i + 1) * self.spacing, dtype=torch.float64)
        return denoiser.score(denoiser.schedule.perturb(x, t, noise), t) / self.num_times


class SingleScore(PerturbationScore):
    """The score of the image itself, without adding noise, evaluated at time ``t``: SSNI's cheaper alternative.

    Args:
        t: in noising steps out of 1000, in (0, 1000].
    """

    random = False
    num_calls = 1

    def __init__(self, t: float = 20.0) -> None:
        if not 0 < t <= 1000:
            raise ValueError(f"t is {t}; it lies in (0, 1000].")
        self.t = t

    def term(self, denoiser: Denoiser, i: int, x: Tensor, noise: Tensor) -> Tensor:
        return denoiser.score(x, torch.tensor(self.t, dtype=torch.float64))


def perturbation(
    statistic: PerturbationScore,
    denoiser: Denoiser,
    x: Tensor,
    noise: NoiseStream,
    call: Callable[..., Tensor] = lambda function, *tensors: function(*tensors),
    graph_budget: float = 0.0,
) -> Tensor:
    """(B,) float64 perturbation scores: norms over all pixels of the `perturbation_map` of the same arguments."""
    return perturbation_map(statistic, denoiser, x, noise, call, graph_budget).double().flatten(1).norm(dim=1)


def perturbation_map(
    statistic: PerturbationScore,
    denoiser: Denoiser,
    x: Tensor,
    noise: NoiseStream,
    call: Callable[..., Tensor] = lambda function, *tensors: function(*tensors),
    graph_budget: float = 0.0,
) -> Tensor:
    """(B, C, H, W) the statistic's vector for images ``x`` (B, C, H, W) in diffusion space.

    Args:
        statistic: the perturbation score.
        denoiser: the diffusion model.
        x: the images.
        noise: a stream of B rows.
        call: calls a row-wise function, in chunks of R rows if need be (see `lustral.rows.Runtime.call`).
        graph_budget: bytes for kept graphs, as for `unroll`.
    """

    def step(i: int, total: Tensor, context: Context) -> Tensor:
        x = context["x"]
        z = noise.normal(x.shape[1:], step=i, dtype=x.dtype) if statistic.random else x
        return total + call(lambda x, z: statistic.term(denoiser, i, x, z), x, z)

    return unroll(step, statistic.num_calls, torch.zeros_like(x), {"x": x}, graph_budget)
