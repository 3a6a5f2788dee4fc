"""No purification: the undefended classifier as a defence like any other."""

from torch import Tensor

from lustral.noise import NoiseStream
from lustral.purifiers.base import Context, Purified, Purifier


class Identity(Purifier):
    """Hands the image on."""

    random = False

    def run(self, x: Tensor, context: Context, noise: NoiseStream) -> Purified:
        return Purified(x[None])
