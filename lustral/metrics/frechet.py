"""The Frechet distance between Gaussians fitted to features of two sets of images.

Dowson and Landau, "The Frechet distance between multivariate normal distributions", 1982; as a measure of the quality
of generated images: Heusel et al., "GANs trained by a two time-scale update rule", NeurIPS 2017 (equation 6).
"""

import torch
from torch import Tensor


class FeatureMoments:
    """Count, mean and covariance of feature vectors, accumulated batch by batch.

    They are stored in one matrix, the sum of the outer products of (1, feature) with itself. So the moments of the
    union of two sets are the sum of their matrices, in one process or over several.

    Args:
        num_features: D, the length of a feature vector.
        device: of the matrix; the device on which processes exchange tensors.

    Attributes:
        sums: the matrix, (1 + D, 1 + D) float64.
    """

    def __init__(self, num_features: int, device: torch.device | str = "cpu") -> None:
        self.num_features, self.device = num_features, device
        self.sums = torch.zeros(1 + num_features, 1 + num_features, dtype=torch.float64, device=device)

    def update(self, features: Tensor) -> None:
        """Add feature vectors, (B, D).

        Raises:
            ValueError: if the shape is another.
        """
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ValueError(
                f"Features of shape {tuple(features.shape)} were given; these moments take (B, D) with "
                f"D = {self.num_features}."
            )
        rows = features.detach().to(self.sums)
        rows = torch.cat((torch.ones_like(rows[:, :1]), rows), dim=1)
        self.sums += rows.T @ rows

    @property
    def count(self) -> int:
        """The number of feature vectors added."""
        return round(float(self.sums[0, 0]))

    def gaussian(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and unbiased covariance (D, D), float64.

        Raises:
            ValueError: if there are fewer than two feature vectors.
        """
        if self.count < 2:
            raise ValueError(f"A covariance is asked of {self.count} images; it takes at least 2.")
        mean = self.sums[0, 1:] / self.count
        centred = self.sums[1:, 1:] - self.count * torch.outer(mean, mean)
        return mean, centred / (self.count - 1)


def frechet_distance(mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), the squared 2-Wasserstein distance of two Gaussians.

    The trace of the root is computed as the sum of the singular values of S1^(1/2) S2^(1/2). These symmetric roots also
    exist for singular covariances (fewer images than features), where a computed root of S1 S2 would be complex.

    Args:
        mean_1, mean_2: (D,).
        covariance_1, covariance_2: (D, D), symmetric and positive semidefinite.
    """
    shift = (mean_1 - mean_2).square().sum()
    shared = torch.linalg.svdvals(_root(covariance_1) @ _root(covariance_2)).sum()
    distance = shift + covariance_1.trace() + covariance_2.trace() - 2.0 * shared
    return max(0.0, float(distance))


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root; eigenvalues below rounding error count as zero."""
    values, axes = torch.linalg.eigh(covariance.double())
    rounding = len(values) * torch.finfo(values.dtype).eps * values[-1].clamp_min(0.0)
    return (axes * torch.where(values > rounding, values, 0.0).clamp_min(0.0).sqrt()) @ axes.T
