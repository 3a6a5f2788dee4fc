"""Where the adversarial images of an evaluation that attacks nobody come from: an attack, or a finished run."""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lustral.attacks import Attack, Cases, Engine
from lustral.describe import describe
from lustral.evaluation.records import Key, Record, read_fingerprint, read_records
from lustral.noise import NoiseStream
from lustral.threat import ThreatModel


class AdversarialImages(ABC):
    """Gives every case its adversarial image."""

    attack: Attack | None = None

    @abstractmethod
    def decides(self) -> dict[str, Any]:
        """What decides the images, as plain data: "attack" and "threat", and where they were found, if they were."""

    @abstractmethod
    def check(self, data: Mapping[str, Any], keys: Collection[Key], image_shape: tuple[int, int, int]) -> None:
        """Refuse images of other data.

        Args:
            data: the fingerprint of the tested data.
            keys: (replicate, index) of the images that will be asked for.
            image_shape: (C, H, W) of the images.

        Raises:
            ValueError: if they are not to be had.
        """

    @abstractmethod
    def __call__(self, engine: Engine, cases: Cases, noise: NoiseStream, replicate: int) -> tuple[Tensor, Tensor]:
        """The adversarial images (B, C, H, W) of ``cases``, and (B,) bool, for which of them there is none: their image
        is the clean one."""


class MadeByAttack(AdversarialImages):
    """An attack makes them: the same images that a robustness evaluation of the same defence and seed would record.

    Args:
        attack: the attack.
        threat: its threat model.
    """

    def __init__(self, attack: Attack, threat: ThreatModel) -> None:
        self.attack, self.threat = attack, threat

    def decides(self) -> dict[str, Any]:
        assert self.attack is not None
        return {"attack": {**describe(self.attack), "target": self.attack.target}, "threat": describe(self.threat)}

    def check(self, data: Mapping[str, Any], keys: Collection[Key], image_shape: tuple[int, int, int]) -> None:
        self.threat.check(image_shape)

    def __call__(self, engine: Engine, cases: Cases, noise: NoiseStream, replicate: int) -> tuple[Tensor, Tensor]:
        assert self.attack is not None
        result = self.attack(engine, cases, self.threat, noise)
        return result.images, result.failed


class FoundInRun(AdversarialImages):
    """A finished robustness evaluation recorded them. The defence that it attacked may be another.

    Args:
        run: the folder of the run.
        classifier: the victim; the run's must be the same.

    Raises:
        ValueError: if there are no records of attacked images, or the run attacked another classifier.
    """

    def __init__(self, run: str | Path, classifier: torch.nn.Module) -> None:
        self.run, self.folder = Path(run).expanduser(), Path(run).expanduser() / "records"
        if not (self.folder / "fingerprint.json").is_file():
            raise ValueError(
                f"There are no records in {self.run}: let adversarial_from name the folder of a robustness evaluation "
                "(runs/eval/RECIPE)."
            )
        fingerprint = read_fingerprint(self.folder)
        self._found: dict[Key, Record] = {}
        self._sha256, self._decides = fingerprint["sha256"], fingerprint["decides"]
        if not {"attack", "threat"} <= self._decides.keys() or "adversarial" in self._decides:
            raise ValueError(
                f"{self.run} is no robustness evaluation, so it has no adversarial images of its own: name one in "
                "adversarial_from."
            )
        if _text(self._decides["defence"]["classifier"]) != _text(describe(classifier)):
            raise ValueError(
                f"{self.run} attacked another classifier, whose adversarial images are not this one's: name a run of "
                "the same classifier with adversarial_from, or give the same one to both."
            )

    def decides(self) -> dict[str, Any]:
        return {**{name: self._decides[name] for name in ("attack", "threat")}, "recorded_by": self._sha256}

    def check(self, data: Mapping[str, Any], keys: Collection[Key], image_shape: tuple[int, int, int]) -> None:
        if _text(self._decides.get("data", {})) != _text(data):
            raise ValueError(
                f"{self.run} attacked images of other data: name a run on the same data with adversarial_from."
            )
        self._found = read_records(self.folder, keys)
        if lacking := len(set(keys) - self._found.keys()):
            raise ValueError(
                f"{self.run} has no record of {lacking} of {len(set(keys))} images: test fewer (--data.num_test), or "
                "let that run attack more."
            )

    def __call__(self, engine: Engine, cases: Cases, noise: NoiseStream, replicate: int) -> tuple[Tensor, Tensor]:
        found = [self._found[replicate, index] for index in cases.index.tolist()]
        images = torch.stack([record.image for record in found]).to(cases.images)
        failed = torch.tensor([record.failed for record in found], device=images.device)
        return torch.where(failed[:, None, None, None], cases.images, images), failed


def _text(described: Any) -> str:
    """Plain data as text: equal for what was read from a file and what was not."""
    return json.dumps(described, sort_keys=True)
