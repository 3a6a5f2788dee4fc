"""What the contract suites share: small real components, streams of rows, and independent derivatives."""

import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lustral.attacks import Attack, Cases, Judged
from lustral.diffusion import Denoiser, NoiseSchedule
from lustral.diffusion.perturbation import PerturbationScore
from lustral.evaluation import Defence, Evaluator, Protocol
from lustral.networks import Classifier, Stage
from lustral.noise import NoiseStream
from lustral.purifiers import Context, GradientMode, Purified, Purifier, StoredScores
from lustral.purifiers.reference import write_scores
from lustral.rows import Runtime
from lustral.threat import ThreatModel


def generator(seed: int = 0) -> torch.Generator:
    """A generator of the test's own: the global one is never touched."""
    return torch.Generator().manual_seed(seed)


def images(batch: int, shape: tuple[int, ...] = (1, 4, 4), seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images well inside [0, 1]."""
    return 0.2 + 0.6 * torch.rand(batch, *shape, generator=generator(seed), dtype=dtype)


def stream(batch: int, seed: int = 0) -> NoiseStream:
    """Rows whose indices are neither in order nor close, as a shuffled subset's are."""
    return NoiseStream(seed, (torch.arange(batch) * 7919 + 13) % 10_007)


def cases(batch: int, shape: tuple[int, ...] = (1, 4, 4), classes: int = 3, seed: int = 0) -> Cases:
    labels = torch.randint(0, classes, (batch,), generator=generator(seed + 1))
    return Cases(images(batch, shape, seed), labels, stream(batch).index)


def randomise(module: nn.Module, scale: float, seed: int = 0) -> None:
    """Give every parameter keyed values: a network's own initialisation reads the global generator."""
    source = generator(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=source, dtype=torch.float64))


class SmoothDenoiser(Denoiser):
    """A small nonlinear denoiser that is smooth, so that central differences are exact enough."""

    def __init__(self, schedule: NoiseSchedule, shape: tuple[int, int, int] = (1, 4, 4)) -> None:
        super().__init__()
        self.schedule, self.shape, self.image_shape = schedule, shape, shape
        self.first = nn.Conv2d(shape[0], 4, 3, padding=1, dtype=torch.float64)
        self.second = nn.Conv2d(4, shape[0], 3, padding=1, dtype=torch.float64)
        randomise(self, 0.5)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        time = (t.double() / 1000).to(x_t.dtype).reshape(-1, 1, 1, 1)
        hidden = torch.tanh(self.first(x_t) + time)
        return 0.6 * x_t + 0.4 * torch.tanh(self.second(hidden))


class VariedDenoiser(SmoothDenoiser):
    """The same with a learned variance, which depends on the image and on the time."""

    learns_variance = True

    def mean_and_variance(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self(x_t, t), 0.5 + 0.5 * torch.tanh(2.0 * self.second(torch.tanh(self.first(x_t))))


class ToyClassifier(Classifier):
    """A small smooth convolutional classifier."""

    def __init__(
        self,
        num_classes: int = 3,
        shape: tuple[int, int, int] = (1, 4, 4),
        seed: int = 0,
        weights: str | None = None,
    ) -> None:
        super().__init__(num_classes, shape, (0.5,), (0.25,))
        self.shape, self.seed, self.weights = shape, seed, weights
        self.conv = nn.Conv2d(shape[0], 8, 3, padding=1)
        self.head = nn.Linear(8 * shape[1] * shape[2], num_classes)
        randomise(self, 0.4, seed)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(x)).flatten(1))


class SeenClassifier(ToyClassifier):
    """One that names its feature map, before and after the activation."""

    def named_stages(self) -> dict[str, Stage]:
        return {"linear": Stage(self.conv), "conv": Stage(self.conv, torch.tanh)}


def stored_scores(denoiser: Denoiser, statistic: PerturbationScore, scores: Sequence[float]) -> StoredScores:
    """Reference scores as their command writes them."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "reference.json"
        write_scores(file, torch.tensor(scores), denoiser, statistic, {}, 0)
        return StoredScores(str(file))


class NoisyPurifier(Purifier):
    """Adds noise and nothing else: the simplest random defence."""

    def __init__(self, std: float = 0.1) -> None:
        super().__init__()
        self.std = std

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        return Purified((x + self.std * noise.normal(x.shape[1:], dtype=x.dtype))[None])


class Reveal:
    """A victim whose logits are the purified pixels: it shows what the engine does to a purifier's rows."""

    def __init__(self, purifier: Purifier) -> None:
        self.purifier, self.ragged = purifier, purifier.ragged

    @property
    def random(self) -> bool:
        return self.purifier.random

    @property
    def runtime(self) -> Runtime:
        return self.purifier.runtime

    @runtime.setter
    def runtime(self, runtime: Runtime) -> None:
        self.purifier.runtime = runtime

    def __call__(
        self,
        x: Tensor,
        noise: NoiseStream,
        gradient: GradientMode = "exact",
        context: Context | None = None,
        wants: Collection[str] = frozenset(),
    ) -> Judged:
        purified = self.purifier(x, noise, gradient, context, wants)
        return Judged(purified.images[0].flatten(1), purified.trace)


class Recording:
    """Hands a defence on, and remembers how many rows each call had and whose they were."""

    def __init__(self, defence: Defence) -> None:
        self.defence, self.calls, self.random = defence, [], defence.random

    @property
    def runtime(self) -> Runtime:
        return self.defence.runtime

    @runtime.setter
    def runtime(self, runtime: Runtime) -> None:
        self.defence.runtime = runtime

    def __call__(
        self,
        x: Tensor,
        noise: NoiseStream,
        gradient: GradientMode = "exact",
        context: Context | None = None,
        wants: Collection[str] = frozenset(),
    ) -> Judged:
        self.calls.append((len(x), noise.index.tolist()))
        return self.defence(x, noise, gradient, context, wants)


def central_differences(function: Callable[[Tensor], Tensor], x: Tensor, h: float = 1e-5) -> Tensor:
    """The gradient of a row-wise ``function`` (B, ...) -> (B,), in float64; all rows are moved at once."""
    assert x.dtype == torch.float64
    found = torch.zeros_like(x).flatten(1)
    with torch.no_grad():
        for i in range(found.shape[1]):
            step = torch.zeros_like(found)
            step[:, i] = h
            step = step.view_as(x)
            found[:, i] = (function(x + step) - function(x - step)) / (2 * h)
    return found.view_as(x)


def differences_at_once(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, h: float = 1e-5) -> Tensor:
    """The same of a ``function`` of images and of the rows of ``x`` that they are, (N, ...), (N,) -> (N,), which is
    asked for everything in one batch."""
    assert x.dtype == torch.float64
    batch, size = len(x), x[0].numel()
    steps = torch.cat((h * torch.eye(size), -h * torch.eye(size))).to(x.dtype).view(-1, 1, *x.shape[1:])
    rows = torch.arange(batch).repeat(2 * size)
    with torch.no_grad():
        above, below = function((x + steps).flatten(0, 1), rows).view(2, size, batch)
    return ((above - below) / (2 * h)).T.reshape(x.shape)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference in units of the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())


THREAT = ThreatModel("linf", "24/255")


def right_cases(batch: int) -> Cases:
    """Cases that the toy classifier gets right as long as nobody touches them; every third index."""
    chosen = cases(batch)
    return Cases(chosen.images, ToyClassifier()(chosen.images).argmax(1), torch.arange(batch) * 3)


def toy_evaluator(purifier: Purifier, attack: Attack, threat: ThreatModel = THREAT, audit_images: int = 8) -> Evaluator:
    """An evaluation of the toy classifier with 8 verdict draws and 16 rows a call."""
    protocol = Protocol(8, audit_images=audit_images)
    return Evaluator(Defence(ToyClassifier(), purifier), attack, threat, protocol, seed=0, rows=16)
