"""The calibration of a detector: its reference images, and the threshold at a false-alarm rate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_modules.module import LustralModule
from lustral.detectors import DeepKernel, Detector, GroupDetector, Reference, calibrated
from lustral.noise import NoiseStream
from lustral.rows import Runtime

Part = Literal["validation", "train"]
_SHARE = 16  # calls of R rows whose images are in memory at once


class DetectorCalibration(LustralModule):
    """Stores validation images as the detector's reference (``reference.safetensors``), and calibrates its threshold on
    other clean images (``threshold.json``). Run with ``cli.py validate``; one process computes.

    Groups are drawn without replacement from a pool of clean images, the same images in many groups; so the threshold
    is as certain as the pool is large, not as the number of groups.

    Args:
        detector: of groups or of single images; it gets the reference here.
        group_size: images in a group; 1 for a detector of single images.
        false_alarm_rate: the share of clean groups (images) above the threshold, in (0, 1).
        num_reference: the first so many validation images are the reference; None: all of them.
        reference_of: "validation"; or "train", training images instead (a keyed choice of ``num_reference``), as an
            attacker has them who does not know the defender's reference.
        calibrate_on: the pool: "validation", the validation images that are not in the reference; or "train", for small
            data sets, the training images: networks have seen them, so look at the false alarms on other images too.
        num_pool: images in the pool, a keyed choice; None: all there are.
        num_groups: groups that are drawn; a detector of single images scores each image of the pool once.
        rows: R, the rows of each network call.
        seed: of the pool, the groups and the detector's noise.

    Raises:
        ValueError: if an option is out of its range.
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        name: f"A calibration {what}: run this with `python cli.py validate`."
        for name, what in (("fit", "trains nothing"), ("test", "looks at no test image"), ("predict", "has no classes"))
    }
    takes_checkpoint = False

    def __init__(
        self,
        detector: Detector | GroupDetector,
        group_size: int = 1,
        false_alarm_rate: float = 0.05,
        num_reference: None | int = None,
        reference_of: Part = "validation",
        calibrate_on: Part = "validation",
        num_pool: None | int = None,
        num_groups: int = 1000,
        rows: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, part in (("calibrate_on", calibrate_on), ("reference_of", reference_of)):
            if part not in get_args(Part):
                raise ValueError(f"{name} is {part!r}; it may be validation or train.")
        grouped = isinstance(detector, GroupDetector)
        if group_size < 1 or grouped != (group_size > 1):
            raise ValueError(
                f"group_size is {group_size}, and {type(detector).__name__} judges "
                f"{'groups: give 2 or more' if grouped else 'single images: leave it 1'}."
            )
        for name, value, least in (
            ("num_reference", num_reference, 2),
            ("num_pool", num_pool, 1),
            ("num_groups", num_groups, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}.")
        self.detector = detector.eval().requires_grad_(False)
        self.detector.runtime = Runtime(rows)
        self.group_size, self.false_alarm_rate, self.calibrate_on = group_size, false_alarm_rate, calibrate_on
        self.num_reference, self.num_pool, self.num_groups = num_reference, num_pool, num_groups
        self.reference_of: Part = reference_of
        self.rows, self.seed = rows, seed

    def untrained(self) -> list[str]:
        """The networks that have random weights."""
        # A deep kernel's network is in the kernel's file.
        known = {id(m.network) for m in self.detector.modules() if isinstance(m, DeepKernel) and m.weights is not None}
        named = [(name, m) for name, m in self.detector.named_modules() if id(m) not in known]
        found = [(name, m) for name, m in named if hasattr(m, "weights") and not _kernel(m)]
        return [name for name, module in found if module.weights is None]

    def validation_step(self, batch: object, batch_idx: int) -> None:
        """Nothing: the images are looked at together, when the epoch ends."""

    def on_validation_epoch_end(self) -> None:
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is None or not hasattr(data, "train_images"):
            raise ValueError("A detector is calibrated with a data module of Lustral, which knows its training images.")
        if self.trainer.is_global_zero:
            self._calibrate(data)

    def _calibrate(self, data: Any) -> None:
        folder = Path(self.trainer.default_root_dir)
        train, val = data.train_parts
        source = self._shuffled(train) if self.reference_of == "train" else val
        chosen = source[: self.num_reference]
        taken = set(chosen)
        pool = self._pool([k for k in (train if self.calibrate_on == "train" else val) if k not in taken])
        identity = {**data.train_fingerprint(), "part": self.reference_of}
        reference = Reference(data.train_images(chosen)[0], torch.tensor(chosen), identity)
        self.detector.refer(reference)
        with torch.no_grad():
            statistics = self._statistics(data, pool)
        threshold = calibrated(statistics, self.false_alarm_rate, self.detector, self.group_size)
        reference.write(folder / "reference.safetensors")
        path = threshold.write(folder / "threshold.json")
        self.log_dict({"threshold": threshold.value, "statistic/mean": statistics.mean()}, rank_zero_only=True)
        rank_zero_info(
            f"Threshold {threshold.value:.5g} of {len(statistics)} clean statistics (mean {statistics.mean():.5g}) at "
            f"a false-alarm rate of {self.false_alarm_rate}, n = {self.group_size}: {path}"
        )

    def _shuffled(self, positions: list[int]) -> list[int]:
        order = NoiseStream(self.seed, torch.tensor(positions)).fork("reference").uniform((), dtype=torch.float64)
        return [positions[k] for k in order.argsort(stable=True).tolist()]

    def _pool(self, positions: list[int]) -> Tensor:
        """The pool's positions in the training split, int64.

        Raises:
            ValueError: if there are fewer than a group.
        """
        most = self.num_pool or len(positions)
        if min(most, len(positions)) < self.group_size:
            raise ValueError(
                f"The pool has {min(most, len(positions))} images, and a group {self.group_size}: lower num_reference, "
                "raise data.num_val or num_pool, or calibrate on the training images (calibrate_on train)."
            )
        index = torch.tensor(positions, dtype=torch.int64)
        order = NoiseStream(self.seed, index).fork("pool").uniform((), dtype=torch.float64).argsort(stable=True)
        return index[order[:most]]

    def _statistics(self, data: Any, pool: Tensor) -> Tensor:
        """(N,) float64 statistics of clean groups, or of each image of the pool."""
        parts = []
        for share in pool.split(self.rows * _SHARE):
            x, index = data.train_images(share.tolist())[0].to(self.device), share.to(self.device)
            noise = NoiseStream(self.seed, index).fork("calibration")
            if isinstance(self.detector, GroupDetector):
                parts.append(self.detector.embed(x, noise))
            else:
                parts.append({"statistic": self.detector(x, noise)})
        rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if not isinstance(self.detector, GroupDetector):
            return rows["statistic"].cpu()
        number = torch.arange(self.num_groups)
        drawn = NoiseStream(self.seed, number).fork("groups").uniform((len(pool),), dtype=torch.float64)
        groups = drawn.argsort(1)[:, : self.group_size].to(self.device)
        found = [self.detector.of_group({name: part[group] for name, part in rows.items()}) for group in groups]
        return torch.stack(found).cpu()

    def configure_optimizers(self) -> Any:
        raise ValueError(self.unsupported["fit"])


def _kernel(module: torch.nn.Module) -> bool:
    """Kernels have numbers of their own, with or without a file."""
    return hasattr(module, "gram")
