"""Small parts of a defence that detects: a smooth image-to-image network, a kernel, a reference."""

import torch
from torch import Tensor, nn

from lustral.detectors import GroupMMD, Reference, SampleMMD, SemanticKernel
from lustral.networks import Penultimate
from lustral.purifiers import DAD, Denoise
from tests.contracts import ToyClassifier, generator, images, randomise

SHAPE = (1, 4, 4)


class SmoothNetwork(nn.Module):
    """An image plus a small smooth change."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)
        randomise(self, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.second(torch.tanh(self.first(x))))


def kernel() -> SemanticKernel:
    return SemanticKernel(Penultimate(ToyClassifier(shape=SHAPE)), 0.1, 20.0, 4.0)


def reference(n: int = 9, seed: int = 30) -> Reference:
    return Reference(images(n, SHAPE, seed), torch.arange(n), {"data": "toy"})


def group_mmd(estimator: str = "unbiased") -> GroupMMD:
    return GroupMMD(kernel(), estimator, reference())  # type: ignore[arg-type]


def sample_mmd() -> SampleMMD:
    return SampleMMD(kernel(), reference())


def dad(threshold: float, group_size: int = 4, **options: object) -> DAD:
    estimator = str(options.pop("estimator", "unbiased"))
    return DAD(Denoise(SmoothNetwork()), group_mmd(estimator), threshold, group_size, **options)  # type: ignore[arg-type]


def bright(batch: int, seed: int = 0) -> Tensor:
    """Images unlike the reference."""
    return 0.8 + 0.2 * torch.rand(batch, *SHAPE, generator=generator(seed))
