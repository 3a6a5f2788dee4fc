"""Parts of an image that an attack keeps its perturbation to."""

from typing import Literal

from torch import Tensor

from lustral.attacks.engine import Engine
from lustral.attacks.victim import Cases
from lustral.noise import NoiseStream
from lustral.purifiers.sizes import resized

Region = Literal["all", "low_noise"]
_MASK = "mask"


def check_mask(engine: Engine) -> None:
    """Refuse a defence whose purifier makes no mask.

    Raises:
        ValueError: if it makes none.
    """
    purifier = getattr(engine.defence, "purifier", None)
    if _MASK not in getattr(purifier, "offers", ()):
        raise ValueError(
            f"attack.region is low_noise, but {type(purifier).__name__} makes no mask that would say where there is "
            "little noise: choose lustral.purifiers.HeterogeneousNoise, or leave the region all."
        )


def low_noise(engine: Engine, cases: Cases, noise: NoiseStream) -> Tensor:
    """(B, 1, H, W) bool: the pixels outside of the mask of each clean image, in one draw of ``noise``."""
    check_mask(engine)
    mask = engine.judge(cases.images, noise, wants=(_MASK,))[1][_MASK][0]
    return resized(mask, cases.images.shape[-1]) < 0.5
