"""A victim as a plain `nn.Module`, as other libraries take it."""

import torch
from torch import Tensor, nn

from lustral.attacks.victim import Victim
from lustral.noise import NoiseStream
from lustral.purifiers import GradientMode

_ITERATIONS = 2**24


class VictimModule(nn.Module):
    """Images (B, C, H, W) in [0, 1] to logits (B, K), with fresh noise at every call and gradients at the input.

    What torchattacks, foolbox, ART and AutoAttack take as their model. Noise is keyed by the number of the call and the
    row in it; so the same calls, in the same order, give the same answers. `Defence.as_module` makes one.

    Args:
        victim: frozen and in eval mode.
        noise: a stream with a row for each image; calls with another number of rows get rows of their own.
        gradient: how the purifier is differentiated.
    """

    def __init__(self, victim: Victim, noise: NoiseStream, gradient: GradientMode = "exact") -> None:
        super().__init__()
        self.victim, self.noise = victim, noise
        self.gradient: GradientMode = gradient
        self.calls = 0
        super().train(False)

    def train(self, mode: bool = True) -> "VictimModule":
        """Nothing changes: a victim stays in eval mode, whatever a library asks of it."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.noise
        if len(stream) != len(x):  # other rows than those it was made for, and so other noise
            first = str(stream.index[0].item()) if len(stream) else "0"
            rows = torch.arange(len(x), device=x.device)
            stream = NoiseStream(stream.seed, rows, path=(*stream.path, "rows", first))
        if self.calls >= _ITERATIONS:
            raise ValueError(f"This module was called {_ITERATIONS} times, all that its noise serves: make a new one.")
        stream = stream.at(iteration=self.calls)
        self.calls += 1
        return self.victim(x, stream, self.gradient).logits
