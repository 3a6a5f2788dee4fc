"""The Python entry: purify images, and attack any module with any purifier, without recipes or a trainer."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from lustral.attacks import Attack, Cases
from lustral.defence import Defence, Merge
from lustral.describe import state_sha256
from lustral.environment import settled
from lustral.evaluation import Dealing, Evaluator, Fingerprint, Protocol, Record, RecordFolder, self_check
from lustral.evaluation.card import make_card, write_card
from lustral.evaluation.portions import portions
from lustral.evaluation.probes import house_attack
from lustral.networks import Classifier, WrappedClassifier
from lustral.noise import NoiseStream
from lustral.purifiers import Identity, Purifier
from lustral.reporting.terminal import rich_table
from lustral.rows import Runtime
from lustral.threat import ThreatModel

TELL_SECONDS = 10.0
DEFAULT_THREATS = "linf 8/255, linf 4/255, l2 0.5"


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found; ``print`` shows it as a table.

    Attributes:
        card: everything that was measured, as ``card.json`` has it (docs/protocol.md).
        images: (n, C, H, W), the adversarial images, in the order of the images that were given.
        records: a record for each image, in that order: logits of every verdict draw, distance, statistics.
    """

    card: dict[str, Any]
    images: Tensor
    records: Sequence[Record] = field(repr=False)

    @property
    def status(self) -> str:
        """ "ok", or "suspect", "unaudited" or "undecided" with the reason."""
        return self.card["status"]

    @property
    def clean(self) -> float:
        """Accuracy on the clean images in [0, 1], under the rule that the attack aimed at."""
        return self._aimed()["clean"]["value"]

    @property
    def robust(self) -> float:
        """Accuracy on the adversarial images in [0, 1], under the rule that the attack aimed at."""
        return self._aimed()["robust"]["value"]

    def _aimed(self) -> dict[str, Any]:
        return next(verdict for verdict in self.card["verdicts"].values() if verdict["aimed_at"])

    def __str__(self) -> str:
        console = Console(width=100, highlight=False)
        with console.capture() as captured:
            console.print(rich_table({"evaluation": self.card}))
        return captured.get()


def purify(images: Tensor, purifier: Purifier, seed: int = 0, rows: int = 64) -> Tensor:
    """``images`` (B, C, H, W) in [0, 1], purified in one draw: (B, C, H, W), or (V, B, C, H, W) of a method that makes
    V views of an image. Row i has the noise of (seed, i).

    Args:
        images: the images.
        purifier: any of `lustral.purifiers`, or your own.
        seed: of all noise.
        rows: the number of rows of a network call.

    Raises:
        ValueError: if ``images`` are no such images, or the purifier needs a classifier, which `defend` binds.
    """
    _check_images(images)
    purifier.runtime = Runtime(rows)
    noise = NoiseStream(seed, torch.arange(len(images), device=images.device)).fork("purify")
    with settled(images.device.type), _frozen(purifier), torch.no_grad():
        views = purifier(images, noise, purifier.gradient_modes[0]).images
    return views[0] if len(views) == 1 else views


def defend(
    model: nn.Module,
    purifier: Purifier | None = None,
    *,
    num_classes: int | None = None,
    image_shape: Sequence[int] | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    merge: Merge = "mean",
) -> Defence:
    """``model`` behind ``purifier`` as one defence; ``defend(...).as_module()`` is a plain module for other libraries.

    Args:
        model: maps images to logits. A `Classifier` knows the rest already; of any other module give the rest.
        purifier: None for the undefended model.
        num_classes, image_shape: K and (C, H, W).
        mean, std: of each channel, which the model's images are normalised by; 0 and 1 if it takes images in [0, 1].
        merge: how several views of an image become one answer.

    Raises:
        ValueError: if ``num_classes`` or ``image_shape`` of a plain module is missing.
    """
    if not isinstance(model, Classifier):
        if num_classes is None or image_shape is None or len(image_shape) != 3:
            raise ValueError(
                f"A {type(model).__name__} does not say what it takes: give num_classes and image_shape=(C, H, W)."
            )
        channels, height, width = image_shape
        model = WrappedClassifier(model, num_classes, (channels, height, width), mean, std)
    return Defence(model, Identity() if purifier is None else purifier, merge)


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    purifier: Purifier | None = None,
    attack: Attack | None = None,
    threat: ThreatModel | str = "linf 8/255",
    protocol: Protocol | None = None,
    num_classes: int | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    merge: Merge = "mean",
    folder: str | Path | None = None,
    seed: int = 0,
    rows: int = 64,
    batch_size: int = 64,
    graph_budget_mib: float = 1024.0,
    progress: bool = True,
) -> Evaluation:
    """Attack a module with a purifier in front of it, judge it on fresh noise and audit the attack: the evaluation of
    ``python cli.py test``, with the same engine, verdicts, records and card.

    Args:
        model: maps images (B, C, H, W) to logits (B, K), on the device on which all is done.
        images: (n, C, H, W) in [0, 1].
        labels: (n,) integers in [0, K).
        purifier: stands before the model; None for the undefended model.
        attack: None takes the house's: APGD on the cross-entropy and the targeted DLR loss for a deterministic defence,
            PGD of 20 steps and 8 draws for a random one.
        threat: the threat model, or its words, such as "linf 8/255" or "l2 0.5".
        protocol: draws and audit; None takes 16 draws, and audits 16 images.
        num_classes: K; None takes what the model returns for the first image.
        mean, std: of each channel, which the model's images are normalised by; 0 and 1 if it takes images in [0, 1].
        merge: how several views of an image become one answer.
        folder: where records and the card are written as they are made; a second call goes on where a first was
            stopped. None keeps all in memory.
        seed: of all noise.
        rows: R, the number of rows of a network call; decides the last bits.
        batch_size: images that are attacked at a time; changes no result.
        graph_budget_mib: memory for kept graphs, in MiB; changes time alone.
        progress: tell on the standard error how far it is.

    Returns:
        The card, and the adversarial images.

    Raises:
        ValueError: if images, labels, threat and model do not go together, or a result would depend on the batch.
    """
    _check_images(images)
    _check_labels(labels, len(images))
    device = next((p.device for p in model.parameters()), images.device)
    with settled(device.type), _frozen(model), _frozen(purifier or Identity()):
        if num_classes is None and not isinstance(model, Classifier):
            num_classes = _classes_of(model, images[:1].to(device))
        shape = tuple(images.shape[1:])
        defence = defend(
            model, purifier, num_classes=num_classes, image_shape=shape, mean=mean, std=std, merge=merge
        ).to(device)
        classifier = defence.classifier
        if classifier.image_shape != shape:
            raise ValueError(f"The images are {shape}, but the model takes {classifier.image_shape}: give it its own.")
        if int(labels.max()) >= classifier.num_classes:
            raise ValueError(
                f"A label is {int(labels.max())}, but the model knows {classifier.num_classes} classes from 0 on: give "
                "the labels that it was trained with."
            )
        modes = defence.purifier.gradient_modes
        attack = attack or house_attack(defence.random, classifier.num_classes, modes[0])
        teller = _Teller(len(images), progress)
        evaluator = Evaluator(
            defence,
            attack,
            _threat(threat),
            protocol or Protocol(),
            seed,
            rows,
            teller.step,
            graph_budget_mib * 2**20,
        )
        evaluator.threat.check(shape)  # type: ignore[arg-type]
        found = _judged(evaluator, images, labels, None if folder is None else Path(folder), batch_size, teller)
        return _result(evaluator, *found, folder=None if folder is None else Path(folder))


def _judged(
    evaluator: Evaluator, images: Tensor, labels: Tensor, folder: Path | None, batch_size: int, teller: "_Teller"
) -> tuple[dict[tuple[int, int], Record], Dealing, Fingerprint]:
    """A record of every image and replicate, those of ``folder`` included."""
    protocol, size = evaluator.protocol, evaluator.defence.group_size
    device = next((p.device for p in evaluator.defence.parameters()), images.device)
    dealing = Dealing(range(len(images)), size, protocol.replicates, protocol.audit_images, evaluator.seed)
    data = {
        "dataset": "arrays",
        "content": state_sha256({"images": images, "labels": labels.to(torch.int64)}),
    }
    fingerprint = Fingerprint({**evaluator.decides(), "data": data, **dealing.described()})
    if folder is not None and (folder / "records" / "fingerprint.json").exists():
        RecordFolder(folder / "records", fingerprint)  # refuses another evaluation's folder before the costlier check
    few = sorted({0, len(images) // 2, len(images) - 1})
    cases = Cases(images[few].to(device), labels[few].to(device, torch.int64), torch.tensor(few, device=device))
    for remark in self_check(evaluator.engine, evaluator.attack, cases, evaluator.seed):
        print(remark, file=sys.stderr)
    # Only now is the folder claimed: what the check refuses leaves nothing in it.
    kept = None if folder is None else RecordFolder(folder / "records", fingerprint)
    if folder is not None:
        _provenance(folder, fingerprint)
    records = {} if kept is None else kept.read()
    started = time.time_ns()
    for audited in (False, True):  # audited images at the end, when calls of theirs are fullest
        for replicate in range(protocol.replicates):
            groups = [
                [index for _, index in group]
                for group in dealing.groups
                if group[0][0] == replicate
                and (group[0] in dealing.audited) == audited
                and any(key not in records for key in group)
            ]
            step = max(1, batch_size // size)
            for first in range(0, len(groups), step):
                index = torch.tensor([i for group in groups[first : first + step] for i in group])
                batch = Cases(images[index].to(device), labels[index].to(device, torch.int64), index.to(device))
                draws = protocol.verdict_draws
                for part in portions(len(batch), evaluator.defence, evaluator.attack, draws, evaluator.rows):
                    some = batch.select(part.to(device))
                    asked = torch.full((len(some),), audited, device=device)
                    new = evaluator.evaluate(some, asked, replicate)
                    if kept is not None and folder is not None:
                        kept.append(new)
                        _write(folder / "cost" / f"rank0-{started:x}.json", json.dumps(evaluator.cost.line()))
                    records |= {(record.replicate, record.index): record for record in new}
                    teller.done(len(records))
    if kept is not None:
        kept.close()
    return records, dealing, fingerprint


def _result(
    evaluator: Evaluator,
    records: dict[tuple[int, int], Record],
    dealing: Dealing,
    fingerprint: Fingerprint,
    folder: Path | None,
) -> Evaluation:
    if folder is not None:
        card = write_card(folder, dealing.keys)
    else:
        content = {"sha256": fingerprint.sha256, "decides": fingerprint.decides}
        card = make_card([records[key] for key in dealing.keys], content, [evaluator.cost.line()])
    first = [records[0, index] for index in dealing.indices]
    return Evaluation(card, torch.stack([record.image for record in first]), first)


def _threat(threat: ThreatModel | str) -> ThreatModel:
    if isinstance(threat, ThreatModel):
        return threat
    words = threat.split()
    if len(words) != 2 or words[0] not in ("linf", "l2"):
        raise ValueError(f"threat is {threat!r}; give a ThreatModel, or words such as {DEFAULT_THREATS}.")
    return ThreatModel("linf" if words[0] == "linf" else "l2", words[1])


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or images.dtype != torch.float32 or not len(images):
        what = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images are {what}; give at least one as a float32 tensor (n, C, H, W) in [0, 1].")
    low, high = (float(value) for value in images.aminmax())
    if not (low >= 0 and high <= 1):  # NaN included
        raise ValueError(
            f"images lie in [{low:.4g}, {high:.4g}], not in [0, 1]: divide grey levels by 255, and leave the "
            "normalisation to `mean` and `std`."
        )


def _check_labels(labels: Tensor, count: int) -> None:
    whole = isinstance(labels, Tensor) and not labels.is_floating_point() and not labels.is_complex()
    if not whole or labels.shape != (count,) or int(labels.min()) < 0:
        what = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"labels are {what}; give one integer from 0 on for each of the {count} images.")


def _classes_of(model: nn.Module, image: Tensor) -> int:
    with torch.no_grad():
        found = model(image)
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 1:
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{type(model).__name__} returned {what} for one image; it must return logits (1, K).")
    return found.shape[1]


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """In this context ``module`` is in eval mode and its parameters need no gradient; afterwards it is as it was."""
    modes = [(part, part.training) for part in module.modules()]
    needs = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.eval().requires_grad_(False)
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
        for parameter, need in needs:
            parameter.requires_grad_(need)


def _provenance(folder: Path, fingerprint: Fingerprint) -> None:
    facts = {
        "stage": "test",
        "fingerprint": fingerprint.sha256,
        "recipe": [],
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": ["lustral.evaluate"],
        "packages": {"torch": torch.__version__},
        "config": {},
    }
    _write(folder / "provenance" / f"test-{time.time_ns():020d}.json", json.dumps(facts, indent=1))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_text(text + "\n")
    partial.replace(path)


class _Teller:
    """Tells how far an evaluation is, at most every `TELL_SECONDS`."""

    def __init__(self, images: int, tells: bool) -> None:
        self.images, self.tells, self.recorded = images, tells, 0
        self._told = time.monotonic()

    def step(self, task: str, step: int, num_steps: int) -> None:
        if self.tells and time.monotonic() - self._told > TELL_SECONDS:
            self._told = time.monotonic()
            print(f"{self.recorded}/{self.images} images · {task} · {step}/{num_steps}", file=sys.stderr, flush=True)

    def done(self, recorded: int) -> None:
        self.recorded = recorded
