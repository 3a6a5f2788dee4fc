"""Numbers about images that need no attack: how close generated ones are to real ones."""

from lustral.metrics.frechet import FrechetDistance

__all__ = ["FrechetDistance"]
