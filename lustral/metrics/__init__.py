"""Metrics of image sets that need no attack: how close generated images are to real ones."""

from lustral.metrics.frechet import FrechetDistance

__all__ = ["FrechetDistance"]
