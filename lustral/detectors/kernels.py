"""Kernels of images: Gaussian, semantic-aware (features of a frozen network) and deep (a trained network).

A kernel is computed in two parts. `Kernel.embed` maps every image to vectors, row by row, which costs the network
calls; `Kernel.gram` combines the vectors of two samples. A reference is embedded once, and many pairs of samples are
combined at once in leading dimensions.

Distances and Gram matrices are float64 and nothing is clamped: in float32, distances of near pairs are rounding errors,
and where a negative one is set to zero, its gradient is lost.
"""

from abc import ABC, abstractmethod
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lustral.detectors.kernel_files import load_kernel_state

Embedded = dict[str, Tensor]
"""Vectors of images by name, (..., n, d) float64 each."""
Parametrisation = Literal["log", "reference"]

PUBLISHED_EPS = 5e-11
"""The mean of the published random start of eps, U(0, 1) 1e-10."""


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(..., n, m) squared Euclidean distances of the vectors ``a`` (..., n, d) and ``b`` (..., m, d).

    In float64 as |a|^2 + |b|^2 - 2 a b about the mean of ``a``, so that equal vectors come out as zero up to 1e-15 of
    their squared spread. (Detectors give the reference as ``a``: of ``b``, no row's bits depend on the others.)
    """
    centre = a.detach().mean(-2, keepdim=True)
    a, b = a - centre, b - centre
    return a.square().sum(-1)[..., :, None] + b.square().sum(-1)[..., None, :] - 2.0 * a @ b.mT


def semantic_gram(x: Embedded, y: Embedded, eps: Tensor, s0: Tensor, s: Tensor) -> Tensor:
    """(..., n, m): k(x, y) = [(1 - eps) exp(-|f(x) - f(y)|^2 / s0) + eps] exp(-|x - y|^2 / s).

    Liu et al., "Learning deep kernels for non-parametric two-sample tests", ICML 2020 (equation 1); with a classifier's
    features in Gao et al., "Maximum mean discrepancy test is aware of adversarial attacks", ICML 2021 (equation 8). The
    divisors have no factor 2.
    """
    features = torch.exp(-squared_distances(x["features"], y["features"]) / s0)
    return ((1.0 - eps) * features + eps) * torch.exp(-squared_distances(x["pixels"], y["pixels"]) / s)


class Kernel(nn.Module, ABC):
    """A kernel k of images (or of maps of their shape, such as perturbation scores).

    Attributes:
        vectors: the names of what `embed` gives.
    """

    vectors: frozenset[str] = frozenset({"features", "pixels"})

    @abstractmethod
    def embed(self, x: Tensor) -> Embedded:
        """The vectors of images ``x`` (n, C, H, W) that `gram` combines, row by row."""

    @abstractmethod
    def gram(self, x: Embedded, y: Embedded) -> Tensor:
        """(..., n, m) float64 values of the kernel between vectors of n and of m images."""

    @abstractmethod
    def adapt(self, x: Tensor, y: Tensor) -> None:
        """Set the bandwidths that were left open to the median squared distance between the samples ``x``
        (n, C, H, W) and ``y`` (m, C, H, W); with ``x is y``, between different images."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(n, m) float64 Gram matrix of images ``x`` (n, C, H, W) and ``y`` (m, C, H, W)."""
        first = self.embed(x)
        return self.gram(first, first if x is y else self.embed(y))

    def numbers(self) -> dict[str, float]:
        """The kernel's scalars by name, for logs and cards."""
        return {}


class Scales(nn.Module):
    """Positive scalars that are trained, and eps in (0, 1); all float64.

    Args:
        values: the scalars by name; None is open, until `set` or a loaded state gives it a value.
        parametrisation: "log": logarithms of bandwidths and the logit of eps are trained, so a step of the optimiser
            is a relative change. "reference": as published, the first bandwidth itself, the square root of the second
            and the logit of eps; with Adam at 2e-4 they hardly move in the published 200 steps.

    Raises:
        ValueError: if a bandwidth is not positive, or eps not in (0, 1).
    """

    def __init__(self, values: dict[str, float | None], parametrisation: Parametrisation) -> None:
        super().__init__()
        if parametrisation not in get_args(Parametrisation):
            raise ValueError(f"parametrisation is {parametrisation!r}; it may be log or reference.")
        self.parametrisation, self.open = parametrisation, {name for name, value in values.items() if value is None}
        for name, value in values.items():
            if value is not None and not (value > 0 and (name != "eps" or value < 1)):
                allowed = "between 0 and 1" if name == "eps" else "positive, or null for the median heuristic"
                raise ValueError(f"{name} of the kernel is {value}; it must be {allowed}.")
            raw = torch.tensor(1.0 if value is None else value, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(self._to_raw(name, raw)))
        # A state holds values of all scalars, so none is open after one is loaded.
        self.register_load_state_dict_post_hook(lambda module, _: module.open.clear())

    def set(self, name: str, value: Tensor) -> None:
        """Give the open scalar ``name`` its value."""
        with torch.no_grad():
            self.get_parameter(name).copy_(self._to_raw(name, value))
        self.open.discard(name)

    def value(self, name: str) -> Tensor:
        """() float64.

        Raises:
            ValueError: if it is open.
        """
        if name in self.open:
            raise ValueError(
                f"The kernel's {name} is open: name a trained kernel (`weights`), give a number, or let the median "
                "heuristic choose it (`adapt`)."
            )
        raw = self.get_parameter(name)
        if name == "eps":
            return torch.sigmoid(raw)
        if self.parametrisation == "log":
            return raw.exp()
        return raw.square() if name == "pixel_bandwidth" else raw * 1.0

    def _to_raw(self, name: str, value: Tensor) -> Tensor:
        if name == "eps":
            return torch.logit(value)
        if self.parametrisation == "log":
            return value.log()
        return value.sqrt() if name == "pixel_bandwidth" else value.clone()


class GaussianKernel(Kernel):
    """exp(-|x - y|^2 / bandwidth), of pixels or of a frozen network's features.

    Args:
        bandwidth: the divisor; None: the median squared distance (`adapt`).
        features: gives (n, D) features of images in [0, 1] (`lustral.networks.Penultimate`); None: the pixels.
        weights: a file written by `lustral.detectors.save_kernel`; None: the bandwidth above.
    """

    vectors = frozenset({"vectors"})

    def __init__(
        self, bandwidth: None | float = None, features: None | nn.Module = None, weights: None | str = None
    ) -> None:
        super().__init__()
        self.bandwidth, self.features, self.weights = bandwidth, _frozen(features), weights
        self.scales = Scales({"bandwidth": bandwidth}, "log")
        _leave_out_of_state(self, features)
        _load(self, weights)

    def train(self, mode: bool = True) -> "GaussianKernel":
        super().train(mode)
        _keep_evaluating(self.features)
        return self

    def embed(self, x: Tensor) -> Embedded:
        return {"vectors": (x if self.features is None else self.features(x)).flatten(1).double()}

    def gram(self, x: Embedded, y: Embedded) -> Tensor:
        return torch.exp(-squared_distances(x["vectors"], y["vectors"]) / self.scales.value("bandwidth"))

    def adapt(self, x: Tensor, y: Tensor) -> None:
        _adapt(self, self.scales, {"bandwidth": "vectors"}, x, y)

    def numbers(self) -> dict[str, float]:
        return {"bandwidth": self.scales.value("bandwidth").item()}


class SemanticKernel(Kernel):
    """The semantic-aware kernel `semantic_gram` on features of a frozen, naturally trained network: three scalars are
    trained and nothing else.

    Args:
        features: gives (n, D) features of images in [0, 1] (`lustral.networks.Penultimate`); frozen here.
        eps: weight of the kernel of pixels alone, in (0, 1). (The published start, about 5e-11, is not moved by
            training: its gradient has itself as a factor.)
        feature_bandwidth: s0; None: the median squared distance of features (`adapt`).
        pixel_bandwidth: s, published as 2 * 32 * 32 for images of 32 pixels; None: the median squared distance.
        parametrisation: "log", or "reference" for parity (see `Scales`).
        weights: a file written by `lustral.detectors.save_kernel`; None: the values above.
    """

    def __init__(
        self,
        features: nn.Module,
        eps: float = 0.02,
        feature_bandwidth: None | float = None,
        pixel_bandwidth: None | float = None,
        parametrisation: Parametrisation = "log",
        weights: None | str = None,
    ) -> None:
        super().__init__()
        self.eps, self.feature_bandwidth, self.pixel_bandwidth = eps, feature_bandwidth, pixel_bandwidth
        self.features, self.parametrisation, self.weights = features, parametrisation, weights
        _frozen(features)
        self.scales = _semantic_scales(eps, feature_bandwidth, pixel_bandwidth, parametrisation)
        _leave_out_of_state(self, features)
        _load(self, weights)

    def train(self, mode: bool = True) -> "SemanticKernel":
        super().train(mode)
        _keep_evaluating(self.features)
        return self

    def embed(self, x: Tensor) -> Embedded:
        return {"features": self.features(x).flatten(1).double(), "pixels": x.flatten(1).double()}

    def gram(self, x: Embedded, y: Embedded) -> Tensor:
        return semantic_gram(x, y, *(self.scales.value(name) for name in _SEMANTIC))

    def adapt(self, x: Tensor, y: Tensor) -> None:
        _adapt(self, self.scales, {"feature_bandwidth": "features", "pixel_bandwidth": "pixels"}, x, y)

    def numbers(self) -> dict[str, float]:
        return {name: self.scales.value(name).item() for name in _SEMANTIC}


class DeepKernel(Kernel):
    """The deep kernel: `semantic_gram` on the output of a network that is trained with the three scalars.

    Args:
        network: gives (n, D) features of images in [0, 1] (`lustral.networks.ConvFeatures`); trained.
        eps, feature_bandwidth, pixel_bandwidth, parametrisation, weights: see `SemanticKernel`.
    """

    def __init__(
        self,
        network: nn.Module,
        eps: float = 0.02,
        feature_bandwidth: None | float = None,
        pixel_bandwidth: None | float = None,
        parametrisation: Parametrisation = "log",
        weights: None | str = None,
    ) -> None:
        super().__init__()
        self.eps, self.feature_bandwidth, self.pixel_bandwidth = eps, feature_bandwidth, pixel_bandwidth
        self.network, self.parametrisation, self.weights = network, parametrisation, weights
        self.scales = _semantic_scales(eps, feature_bandwidth, pixel_bandwidth, parametrisation)
        _load(self, weights)

    def embed(self, x: Tensor) -> Embedded:
        return {"features": self.network(x).flatten(1).double(), "pixels": x.flatten(1).double()}

    def gram(self, x: Embedded, y: Embedded) -> Tensor:
        return semantic_gram(x, y, *(self.scales.value(name) for name in _SEMANTIC))

    def adapt(self, x: Tensor, y: Tensor) -> None:
        _adapt(self, self.scales, {"feature_bandwidth": "features", "pixel_bandwidth": "pixels"}, x, y)

    def numbers(self) -> dict[str, float]:
        return {name: self.scales.value(name).item() for name in _SEMANTIC}


_SEMANTIC = ("eps", "feature_bandwidth", "pixel_bandwidth")


def _semantic_scales(eps: float, s0: float | None, s: float | None, parametrisation: Parametrisation) -> Scales:
    return Scales({"eps": eps, "feature_bandwidth": s0, "pixel_bandwidth": s}, parametrisation)


def _adapt(kernel: Kernel, scales: Scales, vectors: dict[str, str], x: Tensor, y: Tensor) -> None:
    """Set the open bandwidths, each from the ``vectors`` that it divides."""
    if not scales.open:
        return
    with torch.no_grad():
        first = kernel.embed(x)
        second = first if x is y else kernel.embed(y)
        for name, key in vectors.items():
            if name in scales.open:
                scales.set(name, _median(squared_distances(first[key], second[key]), x is y, name))


def _median(distances: Tensor, same: bool, name: str) -> Tensor:
    """The median of (n, m) squared distances; without the diagonal if it holds the distances of images to themselves.

    Raises:
        ValueError: if it is zero.
    """
    if same:
        distances = distances[~torch.eye(len(distances), dtype=torch.bool, device=distances.device)]
    median = distances.median()
    if not median > 1e-12:
        raise ValueError(f"The median squared distance is {float(median):.3g}: give {name} a number instead of null.")
    return median


def _leave_out_of_state(kernel: Kernel, features: nn.Module | None) -> None:
    """Keep a frozen network out of checkpoints and weights files: it has a file of its own."""
    names = () if features is None else tuple(f"features.{name}" for name in features.state_dict())

    def drop(module: nn.Module, state: dict[str, Tensor], prefix: str, _: object) -> None:
        for name in names:
            state.pop(prefix + name, None)

    def forgive(module: nn.Module, incompatible: Any) -> None:
        incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if not key.endswith(names)]

    if names:
        kernel.register_state_dict_post_hook(drop)
        kernel.register_load_state_dict_post_hook(forgive)


def _frozen(network: nn.Module | None) -> nn.Module | None:
    return None if network is None else network.eval().requires_grad_(False)


def _keep_evaluating(network: nn.Module | None) -> None:
    """A frozen network stays in evaluation mode whatever the kernel's mode, or batch statistics would couple images."""
    if network is not None:
        network.eval()


def _load(kernel: Kernel, weights: str | None) -> None:
    if weights is not None:
        load_kernel_state(kernel, weights)
