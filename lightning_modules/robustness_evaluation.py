"""The test loop as a robustness evaluation: attack and judge the images that have no record yet."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_modules.checks import check_fit
from lightning_modules.module import LustralModule
from lustral.attacks import Attack, Cases
from lustral.attacks.victim import whole_groups
from lustral.defence import Merge
from lustral.describe import foreign_source
from lustral.diffusion import Denoiser
from lustral.environment import release_heap
from lustral.evaluation import Dealing, Defence, Evaluator, Fingerprint, Key, Protocol, Record, self_check
from lustral.evaluation.portions import portions
from lustral.networks import Classifier
from lustral.noise import NoiseStream
from lustral.purifiers import Purifier
from lustral.threat import ThreatModel


def _learns(part: torch.nn.Module) -> bool:
    """Whether a network has parameters or buffers that training could have set."""
    return next(part.parameters(), None) is not None


class RobustnessEvaluation(LustralModule):
    """The robustness of a frozen defence under a white-box attack. Run with ``cli.py test``.

    Args:
        classifier: the victim.
        purifier: applied before the classifier; `lustral.purifiers.Identity` for none.
        attack: the attack.
        threat: the threat model.
        protocol: what is measured.
        seed: of all noise; a run with another seed is another evaluation.
        rows: R, the number of rows of every network call. It decides the last bits of the results; choose it as large
            as the device can use.
        graph_budget_mib: memory for graphs of reverse steps that are kept instead of recomputed, in MiB. Changes
            time, never a result.
        merge: how several views of one draw become one answer, "mean" or "vote" (see `lustral.defence.Defence`).

    Attributes:
        finished: keys (replicate, index) that already have a record and are skipped.
        dealing: the division of the images into groups, audits and processes; None without data module.
        in_work: number of images that are being attacked.
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        "fit": "This recipe evaluates and trains nothing: run it with `python cli.py test`.",
        "validate": "A robustness evaluation has one loop: run it with `python cli.py test`.",
    }
    takes_checkpoint = False
    makes_card = True
    own_progress = True

    def __init__(
        self,
        classifier: Classifier,
        purifier: Purifier,
        attack: Attack,
        threat: ThreatModel,
        protocol: Protocol,
        seed: int = 0,
        rows: int = 64,
        graph_budget_mib: float = 1024.0,
        merge: Merge = "mean",
    ) -> None:
        super().__init__()
        if graph_budget_mib < 0:
            raise ValueError(f"graph_budget_mib is {graph_budget_mib}; it cannot be negative.")
        self.defence = Defence(classifier, purifier, merge)
        self._told: Callable[[str, int, int], None] = lambda task, step, num_steps: None
        budget = graph_budget_mib * 2**20
        self.evaluator = Evaluator(self.defence, attack, threat, protocol, seed, rows, self._step, budget)
        sources = [source.defence.purifier for source in self.evaluator.sources()]  # type: ignore[attr-defined]
        others = [other for other in sources if other is not purifier]
        self._purifiers = {"purifier": purifier, **{f"surrogate {i}": other for i, other in enumerate(others)}}
        self.finished: Collection[Key] = frozenset()
        self.dealing: Dealing | None = None
        self.in_work = 0
        self._takers: list[Callable[[Sequence[Record]], None]] = []
        self._waiting: list[Cases] = []
        self._batch_size = 1
        self._checked = False

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

    def hand_on(self, taker: Callable[[Sequence[Record]], None]) -> None:
        """Call ``taker(records)`` with new records as soon as they are made."""
        self._takers.append(taker)

    def _step(self, task: str, step: int, num_steps: int) -> None:
        release_heap()
        self._told(task, step, num_steps)

    def fingerprint(self) -> Fingerprint:
        """The fingerprint of this evaluation on the attached data."""
        datamodule = getattr(self.trainer, "datamodule", None)
        data = {**datamodule.fingerprint(), **foreign_source(type(datamodule))} if datamodule is not None else {}
        groups = self.dealing.described() if self.dealing is not None else {}
        return Fingerprint({**self.evaluator.decides(), "data": data, "untrained": self.untrained(), **groups})

    def untrained(self) -> list[str]:
        """The parts of the defence and of the attack's surrogates that have random weights."""
        parts: dict[str, torch.nn.Module] = {"classifier": self.defence.classifier}
        for whole, purifier in self._purifiers.items():
            for name, module in purifier.named_modules():
                if isinstance(module, (Denoiser, Classifier)):
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
            self.evaluator.threat.check((datamodule.channels, datamodule.image_size, datamodule.image_size))
            self.dealing = self._deal(datamodule, stage)
        if str(self.trainer.precision) != "32-true":
            raise ValueError(
                f"trainer.precision is {self.trainer.precision}, but a defence is judged in full precision: set "
                "trainer.precision to 32-true."
            )
        # Under gloo, Lightning silently uses no_grad instead, so the mistake would show on a GPU only.
        if stage == "test" and self.trainer.test_loop.inference_mode:
            raise ValueError(
                "Attacks need gradients, which inference mode forbids: set trainer.inference_mode to false."
            )

    def _deal(self, datamodule: Any, stage: str) -> Dealing:
        """The division of the tested images; a prediction has one replicate and no audit."""
        protocol, tests = self.evaluator.protocol, stage == "test"
        dealing = Dealing(
            datamodule.test_indices,
            self.defence.group_size,
            protocol.replicates if tests else 1,
            protocol.audit_images if tests else 0,
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
        if self.device.type == "cpu":
            # Sums are split over the threads of the pool, so their last bits depend on the number of threads. To use
            # more cores, start more processes, which does not change results.
            torch.set_num_threads(1)
        # In benchmark mode cuDNN chooses algorithms by timing, and an image's bits would depend on the choice.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        # With TF32 a GPU multiplies float32 numbers with 10 bits of mantissa.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        if not self._checked:
            for remark in self_check(self.evaluator.engine, self.evaluator.attack, self._few(), self.evaluator.seed):
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
        """Attack and judge the images of the batch that have no record, portion by portion; those that are audited wait
        for the end of the epoch.

        Args:
            batch: (image, label, index), and the replicate (B,) as well where images are judged in groups.
        """
        self._batch_size = max(self._batch_size, len(batch[2]))
        for replicate, cases in self._by_replicate(batch):
            keys = [(replicate, index) for index in cases.index.tolist()]
            done = torch.tensor([key in self.finished for key in keys], device=cases.index.device)
            # A group in which any record is missing is judged again as a whole.
            todo = ~whole_groups(done, self.defence.group_size)
            dealt = frozenset[Key]() if self.dealing is None else self.dealing.audited
            audited = torch.tensor([key in dealt for key in keys], device=todo.device)
            self._waiting.append(cases.select(todo & audited))  # only images of replicate 0 are audited
            self._evaluate(cases.select(todo & ~audited), audited=False, replicate=replicate)

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

    def on_test_epoch_end(self) -> None:
        """Attack, judge and audit the images that are audited, at most a batch at a time. They are collected until
        here, since few are in each batch and network calls are fuller if they are processed together."""
        waiting, self._waiting = self._waiting, []
        parts = zip(*((cases.images, cases.labels, cases.index) for cases in waiting), strict=True)
        columns = [torch.cat(part).split(self._batch_size) for part in parts]
        for images, labels, index in zip(*columns, strict=True):
            self._evaluate(Cases(images, labels, index), audited=True)

    def _evaluate(self, cases: Cases, audited: bool, replicate: int = 0) -> None:
        if len(cases) == 0:
            return
        evaluator = self.evaluator
        draws = evaluator.protocol.verdict_draws
        for portion in portions(len(cases), self.defence, evaluator.attack, draws, evaluator.rows):
            some = cases.select(portion.to(cases.index.device))
            self.in_work = len(some)
            asked = torch.full((len(some),), audited, device=some.index.device)
            records = evaluator.evaluate(some, asked, replicate)
            self.in_work = 0
            for take in self._takers:
                take(records)

    def predict_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """(B,) classes that the defence predicts for the clean images in one draw; of replicate 0 if it judges
        groups."""
        images, _, index = batch[:3]
        noise = NoiseStream(self.evaluator.seed, index).fork("predict")
        return self.evaluator.engine.logits(images, noise)[0].argmax(1)

    def configure_optimizers(self) -> Any:
        raise ValueError(self.unsupported["fit"])
