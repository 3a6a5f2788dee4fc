"""DAD: images that a detector finds suspicious are denoised, the others are left alone (Zhang et al., ICML 2025).
docs/dad.md."""

import math
from abc import abstractmethod
from collections.abc import Collection
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from lustral.detectors import Detector, GroupDetector, GroupMMD, SampleMMD, StoredThreshold
from lustral.detectors.mmd import combined
from lustral.diffusion import Context
from lustral.noise import NoiseStream
from lustral.purifiers.base import Purified, Purifier
from lustral.purifiers.denoise import Denoise

Route = Literal["detector", "raw", "denoised", "both"]
"""Which branch an image takes. detector: as the detector says. For attacks to differentiate, through a `Variant`: raw
and denoised, always that one; both, the even draws raw and the odd ones denoised, and the other way round in the
attack's odd steps (so that an attack of one draw a step sees both)."""
Against = Literal["reference", "held"]


class RoutedDenoise(Purifier):
    """What both variants share: a statistic above the threshold sends an image through the denoiser.

    Subclasses implement `statistic`.

    Args:
        denoise: the denoiser's branch.
        detector: what the statistic is of; frozen.
        threshold: the statistic above which an image is denoised: a number, or a calibrated one.
        group_size: images that are judged together.
        route: which branch is taken (`Route`); the defence itself follows its detector.
    """

    ragged = True
    offers: ClassVar = {
        "statistic": "(B,) float64, the detector's statistic, of a group on each of its rows; differentiable",
        "alarm": "(B,) float64, the statistic divided by the threshold, which must be positive and finite",
        "detected": "(B,) bool, whether the statistic is above the threshold",
    }

    def __init__(
        self,
        denoise: Denoise,
        detector: Detector | GroupDetector,
        threshold: float | StoredThreshold,
        group_size: int,
        route: Route,
    ) -> None:
        super().__init__()
        if route not in get_args(Route):
            raise ValueError(f"route is {route!r}; it may be {', '.join(get_args(Route))}.")
        self.denoise, self.threshold, self.group_size = denoise.eval(), threshold, group_size
        self.route: Route = route
        settled = isinstance(detector, (GroupMMD, SampleMMD))  # others, of perturbation scores, draw noise
        self.random = route == "both" or not settled or (route != "raw" and denoise.random)
        detector.eval().requires_grad_(False)
        if isinstance(threshold, StoredThreshold):
            threshold.threshold.check(detector, group_size)
        self.limit = threshold.threshold.value if isinstance(threshold, StoredThreshold) else float(threshold)
        if math.isnan(self.limit):
            raise ValueError("threshold is NaN; give a number.")

    def derived(self) -> dict[str, float]:
        """ "threshold", the number that is used."""
        return {"threshold": round(self.limit, 6)} if math.isfinite(self.limit) else {}

    @abstractmethod
    def statistic(self, x: Tensor, context: Context, noise: NoiseStream) -> Tensor:
        """(B,) float64, higher for more suspicious images; of a group, the same on all of its rows."""

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        trace: dict[str, Tensor] = {}
        if wants or self.route == "detector":
            followed = bool({"statistic", "alarm"} & set(wants))
            with torch.set_grad_enabled(followed and torch.is_grad_enabled()):
                # A node of its own: an image's gradient is then summed in pairs, whose order changes no bit.
                found = self.statistic(x.view_as(x), context, noise.fork("detector"))
            trace = self._trace(found, wants)
            detected = self._detected(found)
        if self.route == "detector":
            chosen = detected
        elif self.route == "both":
            zero = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            counted = (zero if each is None else each for each in (noise.draw, noise.iteration))
            chosen = sum(counted, zero) % 2 == 1
        else:
            chosen = torch.full((len(x),), self.route == "denoised", device=x.device)
        # The only synchronisation with the device: how many rows go through the denoiser is a shape.
        rows = chosen.nonzero().flatten()
        images = x
        if len(rows) == len(x):
            images = self.denoise.denoised(x, noise)
        elif len(rows):
            images = x.index_copy(0, rows, self.denoise.denoised(x[rows], noise.select(rows)))
        return Purified(images[None], trace)

    def _detected(self, statistic: Tensor) -> Tensor:
        """(B,) bool. A statistic that is NaN is above any threshold: nobody may silence a detector with a bad image."""
        return ~(statistic.detach() <= self.limit)

    def _trace(self, statistic: Tensor, wants: Collection[str]) -> dict[str, Tensor]:
        """Raises: ValueError: if an alarm is wanted where the threshold is not positive and finite."""
        trace = {}
        if "statistic" in wants:
            trace["statistic"] = statistic
        if "detected" in wants:
            trace["detected"] = self._detected(statistic)
        if "alarm" in wants:
            if not 0 < self.limit < math.inf:
                raise ValueError(
                    f"The threshold of {type(self).__name__} is {self.limit}, and an alarm is the statistic divided by "
                    "a positive, finite one: choose another threshold, or an attack that does not evade the detector."
                )
            trace["alarm"] = statistic / self.limit
        return trace


class DAD(RoutedDenoise):
    """A statistic of a group of ``group_size`` images decides for all of them: above the threshold they are denoised,
    otherwise the classifier sees them as they are.

    **A verdict depends on the other images of the group**: a clean image beside adversarial ones is denoised, and one
    adversarial image among clean ones is not. `DADPerSample` decides for each image.

    Args:
        denoise: noise and denoiser.
        detector: the statistic of groups, with its reference; as published `lustral.detectors.GroupMMD` on a semantic
            kernel, biased, with as many reference images as a group has.
        threshold: the statistic above which a group is denoised. A number holds at this group size only (published ones
            are 0.05, 0.02 and 0.5, of biased statistics at 100 images); a `StoredThreshold` refuses another size,
            reference or statistic than its own.
        group_size: m, the images that are judged together; 100 as published.
        route: which branch is taken (`Route`).
        against: "reference", or "held": the attack's own images, which it hands over (``context: clean``). That is what
            the authors' attack compares with, in the place of the defender's reference.

    Raises:
        ValueError: if an option is out of its range, the threshold is of another detector or group size, or ``against``
            is held and the detector is no `GroupMMD`.
    """

    def __init__(
        self,
        denoise: Denoise,
        detector: GroupDetector,
        threshold: float | StoredThreshold,
        group_size: int = 100,
        route: Route = "detector",
        against: Against = "reference",
    ) -> None:
        super().__init__(denoise, detector, threshold, group_size, route)
        if group_size < 2:
            raise ValueError(f"group_size is {group_size}; a group has at least 2 images (DADPerSample judges one).")
        if against not in get_args(Against):
            raise ValueError(f"against is {against!r}; it may be reference or held.")
        if against == "held" and not isinstance(detector, GroupMMD):
            raise ValueError(f"against is held, but {type(detector).__name__} is no GroupMMD: leave it reference.")
        self.detector = detector
        self.against: Against = against
        self.holds = detector.kernel.embeds if isinstance(detector, GroupMMD) and against == "held" else frozenset()

    def prepare(self, x: Tensor, noise: NoiseStream) -> Context:
        if self.against == "reference":
            return {}
        self.detector.runtime = self.runtime
        return self.detector.embed(x, noise.fork("detector"))

    def statistic(self, x: Tensor, context: Context, noise: NoiseStream) -> Tensor:
        self.detector.runtime = self.runtime
        if self.against == "reference":
            found = self.detector.statistic(x, self.group_size, noise)
        else:
            found = self._against_held(self.detector.embed(x, noise), context)
        return found.repeat_interleave(self.group_size)

    def _against_held(self, own: Context, held: Context) -> Tensor:
        """(groups,) the discrepancy between each group and the held one in its place."""
        assert isinstance(self.detector, GroupMMD)
        kernel, found = self.detector.kernel, []
        for first in range(0, len(next(iter(own.values()))), self.group_size):
            some = slice(first, first + self.group_size)
            group, clean = ({name: rows[some] for name, rows in part.items()} for part in (own, held))
            grams = kernel.gram(clean, clean), kernel.gram(group, group), kernel.gram(clean, group)
            found.append(combined(self.detector.estimator, *grams))  # type: ignore[arg-type]
        return torch.stack(found)


class DADPerSample(RoutedDenoise):
    """The same with a statistic of each image by itself, so that no verdict depends on other images.

    Args:
        denoise: noise and denoiser.
        detector: the statistic of an image: `lustral.detectors.SampleMMD`, `PerturbationMMD` ...
        threshold, route: see `DAD`; a calibrated threshold is of single images.

    Raises:
        ValueError: if an option is out of its range, or the threshold is of another detector.
    """

    def __init__(
        self,
        denoise: Denoise,
        detector: Detector,
        threshold: float | StoredThreshold,
        route: Route = "detector",
    ) -> None:
        super().__init__(denoise, detector, threshold, 1, route)
        self.detector = detector

    def statistic(self, x: Tensor, context: Context, noise: NoiseStream) -> Tensor:
        self.detector.runtime = self.runtime
        return self.detector(x, noise)
