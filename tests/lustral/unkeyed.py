"""Purifiers and classifiers as their authors must not write them: what the check before an evaluation is for."""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lustral.noise import NoiseStream
from lustral.purifiers import Context, Purified
from tests.contracts import NoisyPurifier, ToyClassifier


class GlobalNoise(NoisyPurifier):
    """Draws from the global generator."""

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        return Purified((x + self.std * torch.randn_like(x))[None])


class NoiseBySlot(NoisyPurifier):
    """Seeds a generator of its own: the noise belongs to the slot."""

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        return Purified((x + self.std * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))[None])


class NoiseByCall(NoisyPurifier):
    """Keeps a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.source = torch.Generator().manual_seed(0)

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        return Purified((x + self.std * torch.randn(x.shape[1:], generator=self.source))[None])


class NoiseOfTheFirst(NoisyPurifier):
    """Gives every row the first one's noise."""

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        return Purified((x + self.std * noise.normal(x.shape[1:])[:1])[None])


class OneDraw(NoisyPurifier):
    """Builds its stream anew and forgets the draw."""

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        other = NoiseStream(noise.seed, noise.index, noise.iteration, path=noise.path)
        return super().run(x, context, other, wants)


class SaysItIsDeterministic(NoisyPurifier):
    random = False


class SaysItIsRandom(NoisyPurifier):
    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        return Purified((0.9 * x)[None])


class Hidden(NoisyPurifier):
    """Keeps a network where nobody finds it, in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = [nn.BatchNorm2d(1)]

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        return Purified(self.kept[0](x)[None])


class ForgottenDropout(ToyClassifier):
    def logits(self, x: Tensor) -> Tensor:
        return super().logits(F.dropout(x, 0.1))


class BatchStatistics(ToyClassifier):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, track_running_stats=False)

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(self.norm(x))


class TrainMode(ToyClassifier):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(self.norm.train()(x))


class MeanOfTheBatch(ToyClassifier):
    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x - x.mean(0))


class Counts(ToyClassifier):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def logits(self, x: Tensor) -> Tensor:
        self.seen += 1
        return super().logits(x)


class SlotMatters(ToyClassifier):
    """A processor that rounds slot 3 otherwise."""

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x) + 1e-6 * (torch.arange(len(x)) == 3)[:, None]


class _LastGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return torch.cat((gradient[:-1], gradient[-1:] * (1 + 1e-6)))


class SlotMattersInTheGradient(ToyClassifier):
    """A processor that rounds the last slot otherwise, going backward only."""

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(_LastGradient.apply(x))  # type: ignore[arg-type]


class PerImageNorm(ToyClassifier):
    """Nothing is wrong with it: an instance norm takes the statistics of one image."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(1)

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(self.norm(x))
