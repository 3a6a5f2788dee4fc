"""Preconditioners, which turn a network's output into a posterior mean: D(x; sigma) = c_skip x + c_out F(c_in x; label)
(Karras et al. 2022, equation 7 and table 1).

``sigma`` is the noise ratio sigma / alpha of a schedule, and x the image at its own scale (x_t / alpha). So one formula
holds for every schedule, and a network that was trained on one can be used on any.
"""

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lustral.diffusion.schedules import MAX_TIME, CosineSchedule, DiscreteSchedule, LinearSchedule, VPSchedule


class Scales(NamedTuple):
    """c_skip, c_out and c_in, float64, of the shape of sigma."""

    skip: Tensor
    out: Tensor
    into: Tensor


class Preconditioner(ABC):
    """The scales and the network's time label as functions of sigma; it has no weights."""

    @abstractmethod
    def scales(self, sigma: Tensor) -> Scales:
        """c_skip, c_out, c_in at ``sigma``, float64, () or (B,)."""

    @abstractmethod
    def label(self, sigma: Tensor) -> Tensor:
        """The time label in the network's own unit; float64, of the shape of ``sigma``."""


def _noise_scales(sigma: Tensor) -> Scales:
    """The scales of a network that predicts the noise of a variance-preserving process."""
    return Scales(torch.ones_like(sigma), -sigma, 1.0 / (1.0 + sigma.square()).sqrt())


class VP(Preconditioner):
    """Score-SDE's VP networks: they predict the noise; the label is 999 t/1000 of the continuous schedule."""

    def scales(self, sigma: Tensor) -> Scales:
        return _noise_scales(sigma)

    def label(self, sigma: Tensor) -> Tensor:
        return VPSchedule().time(sigma) * ((MAX_TIME - 1) / MAX_TIME)


class VE(Preconditioner):
    """Score-SDE's VE networks: F predicts minus the noise; the label is ln(sigma / 2), with sigma in EDM's unit."""

    def scales(self, sigma: Tensor) -> Scales:
        return Scales(torch.ones_like(sigma), sigma, torch.ones_like(sigma))

    def label(self, sigma: Tensor) -> Tensor:
        return (0.5 * sigma).log()


class IDDPM(Preconditioner):
    """Networks trained on a table of N levels (Ho et al. 2020; Nichol and Dhariwal 2021): they predict the noise; the
    label is the index of the nearest level, 0 ... N - 1, times ``unit``.

    Args:
        table: the schedule that they were trained on.
        unit: factor of the index (improved-diffusion's CIFAR-10 model rescales 4000 levels to 0 ... 1000).
    """

    def __init__(self, table: DiscreteSchedule, unit: float = 1.0) -> None:
        self.table, self.unit = table, unit

    def scales(self, sigma: Tensor) -> Scales:
        return _noise_scales(sigma)

    def label(self, sigma: Tensor) -> Tensor:
        return (self.table.level(self.table.time(sigma)) - 1).clamp_min(0).double() * self.unit


class FloorVP(VP):
    """DiffPure's use of a network of a table in continuous time: the label is t, in noising steps out of 1000, rounded
    down to an integer, which is one more than the index of that level. (With times accumulated in float32, 150 steps
    would begin with the labels 149, 148, 148.)"""

    def label(self, sigma: Tensor) -> Tensor:
        return (VPSchedule().time(sigma) + 1e-6).floor()


class EDM(Preconditioner):
    """Karras et al. 2022: the network's input and target have unit variance; the label is ln(sigma) / 4.

    Args:
        sigma_data: standard deviation of the images in diffusion space.
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        self.sigma_data = sigma_data

    def scales(self, sigma: Tensor) -> Scales:
        data, total = self.sigma_data, sigma.square() + self.sigma_data**2
        return Scales(data**2 / total, sigma * data / total.sqrt(), 1.0 / total.sqrt())

    def label(self, sigma: Tensor) -> Tensor:
        return sigma.log() / 4


class Consistency(EDM):
    """Song et al. 2023: EDM's scales, shifted so that the function is the identity at ``sigma_min``.

    The result is the consistency function, the end point of the flow's trajectory, and no posterior mean.

    Args:
        sigma_data: standard deviation of the images in diffusion space.
        sigma_min: the noise ratio at the end of the trajectory.
    """

    def __init__(self, sigma_data: float = 0.5, sigma_min: float = 0.002) -> None:
        super().__init__(sigma_data)
        self.sigma_min = sigma_min

    def scales(self, sigma: Tensor) -> Scales:
        data, total = self.sigma_data, sigma.square() + self.sigma_data**2
        moved = sigma - self.sigma_min
        return Scales(data**2 / (moved.square() + data**2), moved * data / total.sqrt(), 1.0 / total.sqrt())


PreconditioningName = Literal["vp", "ve", "linear", "cosine", "edm", "consistency"]


def make_preconditioner(name: str, sigma_data: float = 0.5, sigma_min: float = 0.002) -> Preconditioner:
    """The preconditioner by the name that a network's ``preconditioning`` option takes.

    vp, ve and edm are those of Karras et al.'s table 1, consistency is the consistency model's; linear and cosine are
    iDDPM's, on the tables of 1000 and of 4000 levels (the latter with labels in 0 ... 1000).
    """
    known: dict[str, Preconditioner] = {
        "vp": VP(),
        "ve": VE(),
        "linear": IDDPM(LinearSchedule()),
        "cosine": IDDPM(CosineSchedule(), unit=0.25),
        "edm": EDM(sigma_data),
        "consistency": Consistency(sigma_data, sigma_min),
    }
    if name not in known:
        raise ValueError(f"preconditioning is {name!r}; it may be {', '.join(get_args(PreconditioningName))}.")
    return known[name]
