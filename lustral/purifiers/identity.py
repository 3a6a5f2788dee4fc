"""No purification: the undefended classifier as a defence like any other."""

from collections.abc import Collection

from torch import Tensor

from lustral.diffusion import Context
from lustral.noise import NoiseStream
from lustral.purifiers.base import Purified, Purifier


class Identity(Purifier):
    """Returns the image unchanged."""

    random = False

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        return Purified(x[None])
