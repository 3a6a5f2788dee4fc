"""The test loop as an evaluation of a frozen defence: judge the images that have no record yet, and make a card."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.figure import Figure
from torch import Tensor

from lightning_modules.checks import check_fit
from lightning_modules.module import LustralModule
from lustral.attacks import Cases
from lustral.attacks.victim import whole_groups
from lustral.describe import foreign_source
from lustral.diffusion import Denoiser
from lustral.environment import release_heap, settle
from lustral.evaluation import Dealing, DefenceEvaluator, Fingerprint, Key, KeyedRecord, Record, self_check
from lustral.networks import Classifier, DUNet
from lustral.noise import NoiseStream
from lustral.purifiers import Purifier


def _learns(part: torch.nn.Module) -> bool:
    """Whether a network has parameters or buffers that training could have set."""
    return next(part.parameters(), None) is not None


class Evaluation(LustralModule):
    """What the evaluations of a defence share: which images are judged and by which process, records and resuming, the
    self-check, the fingerprint, and what is told of the work. Run with ``cli.py test``.

    A child makes its `DefenceEvaluator` (and hands it to `evaluates`), judges images (`judge`), and makes a card of
    their records (`write_card`).

    Attributes:
        record_type: the class of the records.
        so_far: a word for what `tally` counts, in the display of progress.
        attacked: whether records hold an adversarial image of each sample, for the sheets of `callbacks.Panels`.
        finished: keys (replicate, index) that already have a record and are skipped.
        dealing: the division of the images into groups, audits and processes; None without data module.
        in_work: number of images that are being judged.
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        "fit": "This recipe evaluates and trains nothing: run it with `python cli.py test`.",
        "validate": "An evaluation has one loop: run it with `python cli.py test`.",
    }
    takes_checkpoint = False
    makes_card = True
    own_progress = True
    record_type: ClassVar[type[KeyedRecord]] = Record
    so_far: ClassVar[str] = "right"
    attacked: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self._told: Callable[[str, int, int], None] = lambda task, step, num_steps: None
        self.finished: Collection[Key] = frozenset()
        self.dealing: Dealing | None = None
        self.in_work = 0
        self._takers: list[Callable[[Sequence[Any]], None]] = []
        self._batch_size = 1
        self._checked = False

    def evaluates(self, evaluator: DefenceEvaluator, purifiers: Mapping[str, Purifier]) -> None:
        """To be called by a child's constructor.

        Args:
            evaluator: what judges images; its engine reports to `step_told`.
            purifiers: every purifier that is asked, by the name that error messages give it.
        """
        self.evaluator, self.defence = evaluator, evaluator.defence
        self._purifiers = dict(purifiers)

    # What a child says -----------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def main_task(self) -> str:
        """The name of the task by whose steps the share of the first images that is done is guessed."""

    @abstractmethod
    def judge(self, cases: Cases, replicate: int) -> None:
        """Judge ``cases`` (whole groups that have no record), and `keep` their records, portion by portion."""

    @abstractmethod
    def tally(self, record: Any) -> float:
        """How right a record says the defence is, in [0, 1]; the mean over records is shown while the work is done."""

    @abstractmethod
    def write_card(self, folder: Path) -> dict[str, Any]:
        """Make ``card.json`` of the records in a run folder, and return it."""

    def card_figures(self, folder: Path, card: Mapping[str, Any]) -> dict[str, Figure]:
        """Figures of a card, by file stem; none where `callbacks.Panels` draws them all."""
        return {}

    @abstractmethod
    def show_card(self, folder: Path, card: Mapping[str, Any], figures: Sequence[str]) -> None:
        """Print a card; ``figures`` are the names of the image files beside it."""

    @abstractmethod
    def card_metrics(self, card: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
        """Parameters and numbers of a card, for TensorBoard."""

    # What all do -------------------------------------------------------------------------------------------------

    @classmethod
    def refuse(cls, subcommand: str, config: Any) -> None:
        super().refuse(subcommand, config)
        trainer = config.trainer
        if subcommand == "test" and (trainer.fast_dev_run or trainer.limit_test_batches is not None):
            raise ValueError(
                "trainer.limit_test_batches and trainer.fast_dev_run would leave out images that were asked for: "
                "choose how many with --data.num_test."
            )
        if subcommand == "test" and config.seed_everything != 0:
            raise ValueError(
                f"seed_everything is {config.seed_everything}, but an evaluation draws nothing from the global "
                "generator: the seed of its noise is --model.seed."
            )

    def observe(self, callback: Callable[[str, int, int], None]) -> None:
        """Call ``callback(task, step, number of steps)`` at every attack step, and during other work."""
        self._told = callback

    def hand_on(self, taker: Callable[[Sequence[Any]], None]) -> None:
        """Call ``taker(records)`` with new records as soon as they are made."""
        self._takers.append(taker)

    def step_told(self, task: str, step: int, num_steps: int) -> None:
        """What the evaluator's engine reports to."""
        release_heap()
        self._told(task, step, num_steps)

    def keep(self, records: Sequence[KeyedRecord]) -> None:
        """Hand new records on."""
        for take in self._takers:
            take(records)

    def fingerprint(self) -> Fingerprint:
        """The fingerprint of this evaluation on the attached data."""
        datamodule = getattr(self.trainer, "datamodule", None)
        data = {**datamodule.fingerprint(), **foreign_source(type(datamodule))} if datamodule is not None else {}
        groups = self.dealing.described() if self.dealing is not None else {}
        return Fingerprint({**self.evaluator.decides(), "data": data, "untrained": self.untrained(), **groups})

    def untrained(self) -> list[str]:
        """The networks of the defence, and of other purifiers that are asked, that have random weights."""
        parts: dict[str, torch.nn.Module] = {"classifier": self.defence.classifier}
        for whole, purifier in self._purifiers.items():
            for name, module in purifier.named_modules():
                if isinstance(module, (Denoiser, Classifier, DUNet)):
                    parts[f"{whole}.{name}" if name else whole] = module
        return [name for name, part in parts.items() if getattr(part, "weights", None) is None and _learns(part)]

    def setup(self, stage: str) -> None:
        self._takers.clear()
        self.dealing = None
        datamodule = getattr(self.trainer, "datamodule", None)
        parts = [module for purifier in self._purifiers.values() for module in purifier.modules()]
        resized = [m.denoiser for m in parts if getattr(m, "resize_to", None) is not None]
        denoisers = [m for m in parts if isinstance(m, Denoiser) and not any(m is other for other in resized)]
        check_fit(datamodule, [("classifier", self.defence.classifier), *(("denoiser", m) for m in denoisers)])
        if datamodule is not None:
            self.dealing = self._deal(datamodule, stage)
        if str(self.trainer.precision) != "32-true":
            raise ValueError(
                f"trainer.precision is {self.trainer.precision}, but a defence is judged in full precision: set "
                "trainer.precision to 32-true."
            )
        # Under gloo, Lightning silently uses no_grad instead, so the mistake would show on a GPU only.
        if stage == "test" and self.trainer.test_loop.inference_mode:
            raise ValueError(
                "Attacks and guided purifiers need gradients, which inference mode forbids: set trainer.inference_mode "
                "to false."
            )

    def audits(self) -> int:
        """How many of the tested images are judged once more, at the end of the test."""
        return 0

    def _deal(self, datamodule: Any, stage: str) -> Dealing:
        """The division of the tested images; a prediction has one replicate and no audit."""
        protocol, tests = self.evaluator.protocol, stage == "test"
        dealing = Dealing(
            datamodule.test_indices,
            self.defence.group_size,
            protocol.replicates if tests else 1,
            self.audits() if tests else 0,
            self.evaluator.seed,
            len(datamodule.test_set_indices),
        )
        dealing.check_batch_size(datamodule.batch_size)
        return dealing

    def validation_step(self, batch: object, batch_idx: int) -> None:
        raise ValueError(self.unsupported["validate"])

    def on_test_start(self) -> None:
        self.check()

    def check(self) -> None:
        """Configure torch for reproducible bits, and run the self-check (`lustral.evaluation.selfcheck`).

        To be called before anything is written. The self-check runs only once.

        Raises:
            ValueError: if a record would depend on anything but the image and the key of its noise.
        """
        self.defence.eval()
        settle(self.device.type)
        if not self._checked:
            for remark in self_check(self.evaluator.engine, self.evaluator.adversary, self._few(), self.evaluator.seed):
                rank_zero_info(remark)
            self._checked = True

    def _few(self) -> Cases:
        """A few of the tested images: the first, the middle and the last, or without data module the first batch."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None:
            loaders: Any = self.trainer.test_dataloaders
            cases = Cases(*next(iter(loaders[0] if isinstance(loaders, list) else loaders))[:3])
        else:
            tested = datamodule.test_indices
            positions = sorted({tested[0], tested[len(tested) // 2], tested[-1]})
            labels = torch.as_tensor(datamodule.test_source.labels[positions])
            cases = Cases(datamodule.test_images(positions), labels, torch.tensor(positions))
        return Cases(*(rows.to(self.device) for rows in (cases.images, cases.labels, cases.index)))

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Judge the images of the batch that have no record.

        Args:
            batch: (image, label, index), and the replicate (B,) as well where images are judged in groups.
        """
        self._batch_size = max(self._batch_size, len(batch[2]))
        for replicate, cases in self._by_replicate(batch):
            keys = [(replicate, index) for index in cases.index.tolist()]
            done = torch.tensor([key in self.finished for key in keys], device=cases.index.device)
            # A group in which any record is missing is judged again as a whole.
            todo = ~whole_groups(done, self.defence.group_size)
            if todo.any():
                self.judge(cases.select(todo), replicate)

    def _by_replicate(self, batch: Sequence[Tensor]) -> Iterator[tuple[int, Cases]]:
        """The batch's cases by replicate, in whole groups. (A batch may contain the end of one replicate and the
        beginning of the next.)

        Raises:
            ValueError: if a group is incomplete.
        """
        cases, size = Cases(*batch[:3]), self.defence.group_size
        replicates = batch[3] if len(batch) > 3 else torch.zeros_like(cases.index)
        for replicate in replicates.unique().tolist():
            some = cases.select(replicates == replicate)
            if len(some) % size:
                raise ValueError(
                    f"A batch has {len(some)} images of a replicate, and this defence judges {size} together: give the "
                    "loader a sampler that deals whole groups, as the data modules of Lustral do."
                )
            yield replicate, some

    def predict_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """(B,) classes that the defence predicts for the clean images in one draw; of replicate 0 if it judges
        groups."""
        images, _, index = batch[:3]
        noise = NoiseStream(self.evaluator.seed, index).fork("predict")
        return self.evaluator.engine.logits(images, noise)[0].argmax(1)

    def configure_optimizers(self) -> Any:
        raise ValueError(self.unsupported["fit"])
