"""Thresholds that know what they are thresholds of, and refuse anything else."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from torch import Tensor

from lustral.describe import arguments, describe
from lustral.detectors.base import Detector, GroupDetector

_SCHEMA = 1


@dataclass(frozen=True)
class Threshold:
    """A threshold on a detector's statistic; larger values are alarms.

    Args:
        value: the threshold.
        detector_sha256: `identity` of the detector.
        group_size: n, images in a group; 1 for a detector of single images. The mean and spread of a statistic depend
            on it.
        reference_sha256: of the reference images; "" for a detector that has none.
        false_alarm_rate: share of clean images (groups) above the threshold that it was calibrated for, in (0, 1).
        num_clean: how many clean images (groups) it was calibrated on.
    """

    value: float
    detector_sha256: str
    group_size: int
    reference_sha256: str
    false_alarm_rate: float
    num_clean: int

    def fires(self, statistics: Tensor, detector: Detector | GroupDetector, group_size: int = 1) -> Tensor:
        """(...) bool: which ``statistics`` (...) of this detector on groups of this size are alarms; NaN is one.

        Raises:
            ValueError: if the threshold is of another detector, reference or group size.
        """
        self.check(detector, group_size)
        return ~(statistics <= self.value)

    def check(self, detector: Detector | GroupDetector, group_size: int) -> None:
        """Refuse another detector, reference or group size than those of the calibration.

        Raises:
            ValueError: if one differs.
        """
        again = "calibrate a threshold for this one (lustral.detectors.calibrated)"
        if group_size != self.group_size:
            raise ValueError(
                f"The threshold {self.value:.4g} is of groups of {self.group_size}, not of {group_size}, where the "
                f"statistic has another spread: {again}."
            )
        if reference_sha256(detector) != self.reference_sha256:
            raise ValueError(f"The threshold {self.value:.4g} is of another reference than the detector's: {again}.")
        if identity(detector) != self.detector_sha256:
            raise ValueError(
                f"The threshold {self.value:.4g} is of another statistic than this {type(detector).__name__} (kernel, "
                f"estimator or network differ, or bandwidths are open here): {again}."
            )

    def write(self, path: str | Path) -> Path:
        """Write the threshold to a JSON file, atomically."""
        path = Path(path).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps({"schema": _SCHEMA, **asdict(self)}, indent=1) + "\n")
        partial.replace(path)
        return path


def read_threshold(path: str | Path) -> Threshold:
    """A threshold from a file that `Threshold.write` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or of another schema.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no threshold {path} (looked in {Path.cwd()}): calibrate one.")
    try:
        record = json.loads(path.read_text())
        schema, kinds = record["schema"], {field.name: field.type for field in fields(Threshold)}
        threshold = Threshold(**{name: kind(record[name]) for name, kind in kinds.items()})  # type: ignore[operator]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} holds no threshold ({error!r}): calibrate it again.") from error
    if schema != _SCHEMA or not math.isfinite(threshold.value):
        raise ValueError(f"{path} holds no finite threshold of schema {_SCHEMA}: calibrate it again.")
    return threshold


def calibrated(clean: Tensor, rate: float, detector: Detector | GroupDetector, group_size: int = 1) -> Threshold:
    """The threshold above which at most a share ``rate`` of clean images (groups) lies.

    It is the `conformal_quantile`.

    Args:
        clean: (n,) statistics of clean images (groups) that are not in the reference.
        rate: in (0, 1).
        detector: which made them.
        group_size: images in each group.

    Raises:
        ValueError: if there are too few for the rate, or not all are finite.
    """
    n = len(clean)
    if not clean.isfinite().all():
        raise ValueError(
            f"{int((~clean.isfinite()).sum())} of {n} clean statistics are NaN or Inf: nothing to calibrate."
        )
    value = conformal_quantile(clean, rate)
    return Threshold(value, identity(detector), group_size, reference_sha256(detector), rate, n)


def conformal_quantile(clean: Tensor, rate: float) -> float:
    """The ceil((1 - rate) (n + 1))-th smallest of n ``clean`` statistics (n,): a further exchangeable one is above it
    with probability at most ``rate`` (the split conformal quantile; Vovk et al. 2005).

    Raises:
        ValueError: if there are too few for the rate.
    """
    n, rank = len(clean), math.ceil((1.0 - rate) * (len(clean) + 1) - 1e-9)
    if not 0.0 < rate < 1.0 or not n or rank > n:
        least = math.ceil(1.0 / rate) - 1 if 0.0 < rate < 1.0 else 1
        raise ValueError(
            f"A false-alarm rate of {rate} cannot be calibrated on {n} clean statistics: it takes a rate between 0 and "
            f"1, and at least {least} of them."
        )
    return float(clean.double().sort().values[rank - 1])


def identity(detector: Detector | GroupDetector) -> str:
    """A hash of a detector's class, options, kernel and networks; its reference is left out."""
    plain = {"class": type(detector).__name__, **describe(arguments(detector, ("reference",)))}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def reference_sha256(detector: Detector | GroupDetector) -> str:
    """The hash of a detector's reference images; "" if it has none."""
    return "" if detector.reference is None else detector.reference.sha256


class StoredThreshold:
    """A calibrated threshold from a file (use as a ``class_path``).

    Args:
        file: written by `Threshold.write`: ``threshold.json`` of a run of ``configs/calibration``.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is damaged or of another schema.
    """

    def __init__(self, file: str) -> None:
        self.file, self.threshold = file, read_threshold(file)

    def described(self) -> dict[str, object]:
        """What decides results: the threshold and what it is of, not the path of the file."""
        return asdict(self.threshold)
