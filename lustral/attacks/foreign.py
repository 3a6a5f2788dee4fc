"""Attacks of other libraries, and your own functions, under this project's verdicts and audit."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from lustral.attacks.base import Attack
from lustral.attacks.engine import Engine
from lustral.attacks.global_generators import seeded
from lustral.attacks.victim import Cases
from lustral.attacks.victim_module import VictimModule
from lustral.describe import function_source
from lustral.noise import NoiseStream
from lustral.purifiers import GradientMode
from lustral.threat import ThreatModel


class ForeignAttack(Attack):
    """An attack of another library, or your own function, under this project's verdicts and audit.

    The function is called with the victim as a plain module (`VictimModule`), images and labels, and returns perturbed
    images, which are projected into the threat model. torch's, numpy's and Python's global generators are seeded from
    the first image's key before each call and put back afterwards, so a run can be repeated.

    Args:
        function: ``(model, x, y) -> x_adv``, with x (B, C, H, W) in [0, 1] and y (B,); or its dotted path, for recipes.
        together: images that are handed over at once. With 1 an image's result depends on nothing else; with more, a
            library is faster, and results may depend on the batch, which the card cannot see.
        gradient: how the purifier is differentiated.

    Raises:
        ValueError: if ``together`` is below 1, the path cannot be imported, or the function returns other than images.
    """

    def __init__(
        self,
        function: Callable[[nn.Module, Tensor, Tensor], Tensor] | str,
        together: int = 1,
        gradient: GradientMode = "exact",
    ) -> None:
        if together < 1:
            raise ValueError(f"together is {together}; it must be at least 1.")
        self.function: Any = _imported(function) if isinstance(function, str) else function
        self.together = together
        self.gradient: GradientMode = gradient

    @property
    def name(self) -> str:
        return f"ForeignAttack {getattr(self.function, '__name__', type(self.function).__name__)}"

    def described(self) -> dict[str, Any]:
        """By the function's name and code, for the fingerprint."""
        return {"function": function_source(self.function), "together": self.together, "gradient": self.gradient}

    def run(
        self, engine: Engine, cases: Cases, threat: ThreatModel, noise: NoiseStream
    ) -> tuple[Tensor, dict[str, Tensor]]:
        size = max(self.together, engine.group_size)
        found = []
        for rows in torch.arange(len(cases), device=cases.images.device).split(size):
            some, stream = cases.select(rows), noise.select(rows)
            module = VictimModule(engine.defence, stream, self.gradient)
            x, y = some.images.clone(), some.labels.clone()
            with torch.enable_grad(), seeded(_seed(stream)):
                images = self.function(module, x, y)
            if not isinstance(images, Tensor) or images.shape != x.shape:
                what = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
                raise ValueError(f"{self.name} returned {what}; it must return images {tuple(x.shape)}.")
            found.append(images.detach().to(x))
            engine.observe(self.name, int(rows[-1]) + 1, len(cases))
        return torch.cat(found), {}


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"The attack {path!r} cannot be imported ({error}): give a function's dotted path.") from error


def _seed(noise: NoiseStream) -> int:
    """A seed in [0, 2**32) by the key of the first row."""
    return int(noise.fork("seed").uniform((1,), dtype=torch.float64)[0, 0] * 2**32)
