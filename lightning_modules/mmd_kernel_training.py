"""Training of a kernel to tell adversarial images from clean ones."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_modules.checks import check_fit
from lightning_modules.module import LustralModule
from lightning_modules.optimisation import Interval, Optimisation
from lightning_modules.victim_set import VictimSet
from lustral.attacks import Attack
from lustral.describe import describe
from lustral.detectors import Kernel, Reference, finite_power, power_objective, run_trials
from lustral.detectors.kernels import Embedded
from lustral.detectors.mmd import grams
from lustral.evaluation.intervals import wilson
from lustral.networks import Classifier
from lustral.noise import NoiseStream
from lustral.threat import ThreatModel

Batch = tuple[Tensor, Tensor, Tensor]
Objective = Literal["finite", "published"]


class MMDKernelTraining(LustralModule):
    """A kernel that is trained for test power between clean images and their adversarial versions.

    Two disjoint, class-balanced sets are chosen among the training images: one to train on, and one held out, on which
    the objective and the power of permutation tests are measured before and after (``kernel.json`` in the run's folder,
    and TensorBoard). Their adversarial versions are made by the attack on the undefended, frozen classifier before the
    first epoch and kept in ``adversarial_folder``. Bandwidths that the kernel leaves open start at the median heuristic
    between the two sets of images. The first validation images are written to ``reference.safetensors``, for detectors.

    The objective is of a process's own batch. With a ``data.batch_size`` of ``num_images`` a step is a full batch, as
    published; several processes average the gradients of their shares' objectives.

    Args:
        kernel: trained, and exported as ``weights.safetensors``; its open bandwidths are set here.
        classifier: the victim, with weights; frozen.
        attack: makes the adversarial images.
        threat: what it may do.
        objective: "finite" raises the power of a test of ``objective_size`` against as many images
            (`lustral.detectors.finite_power`), between the clean images of one half of a batch and the adversarial
            ones of the other. "published" raises J (`lustral.detectors.power_objective`) between the clean images of
            a batch and the adversarial versions of the same ones: its optimum has less power than the median heuristic
            on the digits (docs/detection.md).
        objective_size: n of the "finite" objective.
        num_images: images to train on; published: 500, 1000 for ImageNet.
        num_held_out: images on which power is measured, at least twice the largest of ``group_sizes``.
        num_reference: images of the reference that is written, at most; published: 500.
        adversarial_folder: where adversarial images are kept; None: ``adversarial`` in the run's folder.
        mirror: mirror clean and adversarial images left to right with probability 1/2 each, as published for all but
            digits.
        group_sizes: n, at which power is measured.
        trials: tests for each n.
        level: of the tests.
        optimizer: any of torch.optim, or your own, with its options.
        lr_scheduler: learning-rate schedule.
        lr_interval: whether the schedule advances after every "step" (of the optimiser) or every "epoch".
        rows: R, the rows of each network call of the attack.
        seed: of the choice of images, the attack, the mirroring and the trials.

    Raises:
        ValueError: if a number is out of its range.
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        "validate": "A kernel's training measures its power itself: see kernel.json in its run's folder.",
        "test": "A kernel is judged as a detector: python cli.py test -c configs/eval/digits_detection.yaml.",
        "predict": "A kernel has no classes to predict: judge it as a detector, python cli.py test -c "
        "configs/eval/digits_detection.yaml.",
    }

    def __init__(
        self,
        kernel: Kernel,
        classifier: Classifier,
        attack: Attack,
        threat: ThreatModel,
        objective: Objective = "finite",
        objective_size: int = 25,
        num_images: int = 500,
        num_held_out: int = 400,
        num_reference: int = 500,
        adversarial_folder: None | str = None,
        mirror: bool = False,
        group_sizes: Sequence[int] = (10, 25, 50, 100),
        trials: int = 200,
        level: float = 0.05,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=0.05),
        lr_scheduler: LRSchedulerCallable = lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1.0),
        lr_interval: Interval = "step",
        rows: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_images < 4 or num_reference < 2 or trials < 1 or not 0 < level < 1:
            raise ValueError(
                f"num_images = {num_images}, num_reference = {num_reference}, trials = {trials}, level = {level}: they "
                "must be at least 4, 2 and 1, and the level between 0 and 1."
            )
        if objective not in get_args(Objective) or objective_size < 2:
            raise ValueError(
                f"objective is {objective!r} with objective_size {objective_size}; it may be finite or published, and "
                "the size at least 2."
            )
        if not group_sizes or min(group_sizes) < 2 or num_held_out < 2 * max(group_sizes):
            raise ValueError(
                f"group_sizes are {list(group_sizes)} and num_held_out is {num_held_out}: groups have at least two "
                "images, and every test takes two groups of different held-out images."
            )
        self.kernel, self.num_images, self.num_held_out = kernel, num_images, num_held_out
        self.objective, self.objective_size = objective, objective_size
        self.num_reference, self.adversarial_folder, self.mirror = num_reference, adversarial_folder, mirror
        self.group_sizes, self.trials, self.level, self.seed = list(group_sizes), trials, level, seed
        self.optimisation = Optimisation(optimizer, lr_scheduler, lr_interval)
        self.victims = VictimSet(classifier, attack, threat, rows, seed)
        self.before: dict[str, Any] | None = None
        self._chosen: tuple[list[int], list[int]] | None = None
        self._images: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def exported(self) -> Kernel:
        """The kernel that is written to the weights file."""
        return self.kernel

    @property
    def train_positions(self) -> list[int] | None:
        """The training images that the data module deals, as they are in tests."""
        return None if self._chosen is None else self._chosen[0]

    def setup(self, stage: str) -> None:
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is None or not hasattr(data, "train_images"):
            raise ValueError("A kernel is trained with a data module of Lustral, which knows its training images.")
        networks: dict[str, nn.Module] = {"classifier": self.victims.classifier}
        if isinstance(features := getattr(self.kernel, "features", None), nn.Module):
            networks["kernel.features"] = features
        random = [name for name, network in networks.items() if getattr(network, "weights", "") is None]
        if random:
            raise ValueError(
                f"The weights of {', '.join(random)} are random, and a kernel would learn nothing from them: name a "
                "weights file (model.classifier.weights)."
            )
        if len(data.train_parts[1]) < 2:
            raise ValueError(
                f"{data.name} has {len(data.train_parts[1])} validation image, and the reference of a detector, which "
                "is made of them, takes at least two: raise data.num_val."
            )
        networks["kernel.network"] = getattr(self.kernel, "network", None) or nn.Identity()
        check_fit(data, networks.items())
        self._chosen = self._choose(data)

    def _choose(self, data: Any) -> tuple[list[int], list[int]]:
        """Positions to train on, and held-out ones: two class-balanced draws out of the training part."""
        part, (used, held) = data.train_parts[0], (self.num_images, self.num_held_out)
        if used + held > len(part):
            raise ValueError(
                f"num_images and num_held_out are {used} and {held}, but {data.name} trains on {len(part)} images: "
                "choose fewer."
            )
        positions = torch.tensor(part)
        labels = torch.as_tensor(data.train_source.labels[part])
        drawn = NoiseStream(self.seed, positions).fork("kernel set").uniform((1,), dtype=torch.float64)[:, 0]
        place = torch.empty(len(part), dtype=torch.float64)
        for label in labels.unique().tolist():  # the k-th of n of a class stands at (k + 1/2) / n
            members = (labels == label).nonzero()[:, 0]
            place[members] = (drawn[members].argsort().argsort() + 0.5).double() / len(members)
        order = positions[place.argsort(stable=True)].tolist()
        return order[:used], order[used : used + held]

    def on_fit_start(self) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        assert self._chosen is not None
        folder = self.adversarial_folder or str(Path(self.trainer.default_root_dir) / "adversarial")
        kept = self.victims.opened(self, data, [*self._chosen[0], *self._chosen[1]], folder)
        for name, positions in zip(("train", "held out"), self._chosen, strict=True):
            clean = data.train_images(positions)[0].to(self.device)
            self._images[name] = clean, kept.read(torch.tensor(positions, device=self.device))
        self.kernel.adapt(*self._images["train"])
        if self.before is None:  # a training that goes on has it from its checkpoint
            self.before = self._measured()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["before"] = json.dumps(self.before)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.before = json.loads(checkpoint.get("before", "null"))

    # The training ---------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        index = batch[2]
        assert self._chosen is not None
        places = {position: row for row, position in enumerate(self._chosen[0])}
        rows = torch.tensor([places[position] for position in index.tolist()], device=self.device)
        clean, adversarial = (images[rows] for images in self._images["train"])
        if self.mirror:
            noise = NoiseStream(self.seed, index).at(iteration=self.global_step)
            clean, adversarial = (_mirrored(x, noise.fork(k)) for k, x in (("a", clean), ("b", adversarial)))
        objective = self._objective(clean, adversarial)
        self.log("train/objective", objective.float(), batch_size=len(index), prog_bar=True)
        self.log_dict({f"kernel/{name}": value for name, value in self.kernel.numbers().items()}, batch_size=1)
        return -objective

    def _objective(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        half = len(clean) // 2
        if self.objective == "finite":  # no image beside its own adversarial version
            clean, adversarial = clean[:half], adversarial[half : 2 * half]
        k = grams(self.kernel, *self._embedded(clean, adversarial))
        return (
            power_objective(*k) if self.objective == "published" else finite_power(*k, self.objective_size, self.level)
        )

    def _embedded(self, clean: Tensor, adversarial: Tensor) -> tuple[Embedded, Embedded]:
        # Together, so that batch statistics of a deep kernel do not tell the two apart.
        both = self.kernel.embed(torch.cat((clean, adversarial)))
        n = len(clean)
        return {name: v[:n] for name, v in both.items()}, {name: v[n:] for name, v in both.items()}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Held-out images are in memory; the loop only says when they are looked at (``trainer.limit_val_batches``)."""

    def on_validation_epoch_end(self) -> None:
        self.log("val/objective", self._held_out_objective(), sync_dist=True, prog_bar=True)

    def on_train_end(self) -> None:
        if self.trainer.global_step == 0 or not self.trainer.is_global_zero:
            return
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        folder = Path(self.trainer.default_root_dir)
        report = {
            "kernel": type(self.kernel).__name__,
            "attack": describe(self.victims.attack),
            "threat": describe(self.victims.threat),
            "objective": self.objective,
            "objective_size": self.objective_size,
            "num_images": self.num_images,
            "num_held_out": self.num_held_out,
            "level": self.level,
            "before": self.before,
            "after": self._measured(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "kernel.json").write_text(json.dumps(report, indent=1) + "\n")
        positions = data.train_parts[1][: self.num_reference]
        images, _ = data.train_images(positions)
        made_by = {**data.train_fingerprint(), "part": "validation"}
        Reference(images, torch.tensor(positions), made_by).write(folder / "reference.safetensors")
        for when in ("before", "after"):
            rank_zero_info(_sentence(when, report[when]))

    # Held-out images ------------------------------------------------------------------------------------

    @torch.no_grad()
    def _held_out_objective(self) -> Tensor:
        training = self.kernel.training
        self.kernel.eval()
        found = self._objective(*self._images["held out"]).float()
        self.kernel.train(training)
        return found

    @torch.no_grad()
    def _measured(self) -> dict[str, Any]:
        """Objective, level and power on the held-out images, with 95 % intervals; the kernel's scalars."""
        training = self.kernel.training
        self.kernel.eval()
        both = self.kernel.embed(torch.cat(self._images["held out"]))
        pool = self.kernel.gram(both, both)
        rates: dict[str, Any] = {"power": {}, "level": {}}
        for n in self.group_sizes:
            for name, adversarial in (("power", n), ("level", 0)):
                tested = run_trials(pool, n, adversarial, self.trials, self.seed)
                rate = wilson(float((tested.p_value <= self.level).sum()), self.trials)
                rates[name][str(n)] = {"value": rate.value, "low": rate.low, "high": rate.high}
        objective = float(self._objective(*self._images["held out"]))
        numbers = self.kernel.numbers()
        self.kernel.train(training)
        return {"objective": objective, **rates, "kernel": numbers}

    def configure_optimizers(self) -> Any:
        return self.optimisation.configured(self.kernel.parameters(), self.trainer)


def _mirrored(x: Tensor, noise: NoiseStream) -> Tensor:
    return torch.where(noise.fork("mirror").uniform((1, 1, 1)) < 0.5, x.flip(-1), x)


def _sentence(when: str, measured: dict[str, Any]) -> str:
    power = ", ".join(f"n = {n}: {100 * rate['value']:.0f} %" for n, rate in measured["power"].items())
    return f"Held-out objective {when} training: {measured['objective']:.4f}; power {power}"
