"""A plane through features, in which they can be drawn: principal components."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Plane:
    """The plane of the first two principal components.

    Attributes:
        centre: (D,) float64, the mean.
        axes: (D, 2) float64, orthonormal. The largest entry of each is positive, so that equal features give equal
            pictures.
        shares: the shares of the variance along the two.
    """

    centre: Tensor
    axes: Tensor
    shares: tuple[float, float]

    def __call__(self, features: Tensor) -> Tensor:
        """(..., 2) coordinates of features (..., D)."""
        return (features.double() - self.centre) @ self.axes


def fitted_plane(features: Tensor) -> Plane:
    """The plane of ``features`` (n, D).

    Raises:
        ValueError: if they do not span a plane.
    """
    features = features.double()
    if min(features.shape) < 2:
        raise ValueError(f"Features of shape {tuple(features.shape)} span no plane: take 2 images or more.")
    centre = features.mean(0)
    _, lengths, directions = torch.linalg.svd(features - centre, full_matrices=False)
    axes = directions[:2].T
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    variances = lengths.square()
    total = float(variances.sum())
    first, second = (float(variance) / total if total else 0.0 for variance in variances[:2])
    return Plane(centre, axes * largest.sign().where(largest != 0, 1.0), (first, second))
