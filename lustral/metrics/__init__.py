"""Metrics of image sets that need no attack: how close generated images are to real ones."""

from lustral.metrics.frechet import FeatureMoments, frechet_distance
from lustral.metrics.quality import ImageStatistics

__all__ = ["FeatureMoments", "ImageStatistics", "frechet_distance"]
