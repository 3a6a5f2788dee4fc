"""Stored perturbation scores of reference images, with which an image's score is compared."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lustral.describe import describe
from lustral.diffusion import Denoiser
from lustral.diffusion.perturbation import PerturbationScore

_SCHEMA = 1


class StoredScores:
    """Perturbation scores of held-out images, on which no network was trained, from a file with their provenance.

    Args:
        file: ``reference.json`` of a run of ``python cli.py validate -c configs/reference/...``.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is damaged, of another schema, or has fewer than two or non-finite scores.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        path = Path(file).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"There are no reference scores {path} (looked in {Path.cwd()}): make them with `python cli.py "
                f"validate -c configs/reference/{path.parent.name}.yaml`, or name another file (`reference`)."
            )
        try:
            record = json.loads(path.read_text())
            self.scores = torch.tensor(record["scores"], dtype=torch.float64)
            self.made_by: dict[str, Any] = record["made_by"]
            schema = record["schema"]
            if not isinstance(self.made_by, dict) or not {"denoiser", "statistic"} <= self.made_by.keys():
                raise TypeError("made_by names no denoiser and statistic")
        except (ValueError, KeyError, TypeError, RuntimeError, RecursionError) as error:
            raise ValueError(f"{path} holds no reference scores ({error!r}): make it again.") from error
        if schema != _SCHEMA:
            raise ValueError(
                f"{path} has schema {schema!r}, and this version of Lustral reads schema {_SCHEMA}: make it again."
            )
        if self.scores.ndim != 1 or len(self.scores) < 2 or not self.scores.isfinite().all():
            raise ValueError(f"{path} must hold at least two finite scores: make it again.")

    def described(self) -> dict[str, Any]:
        """What decides results: the scores' hash and how they were made, not the path of the file."""
        digest = hashlib.sha256(self.scores.numpy().tobytes()).hexdigest()
        return {"scores_sha256": digest, "num_scores": len(self.scores), "made_by": self.made_by}

    def check(self, denoiser: Denoiser, statistic: PerturbationScore) -> None:
        """Refuse scores that were made with another denoiser or another statistic.

        Raises:
            ValueError: if they were.
        """
        here = provenance(denoiser, statistic)
        for name, word in (("denoiser", "another denoiser"), ("statistic", "another statistic")):
            if self.made_by[name] != here[name]:
                raise ValueError(
                    f"The reference scores {self.file} are of {word}: make them again with `python cli.py validate`, "
                    f"or choose the {name} that they were made with ({self.made_by[name]})."
                )


def provenance(denoiser: Denoiser, statistic: PerturbationScore) -> dict[str, Any]:
    """What scores depend on besides the images, as plain data: the denoiser and the statistic."""
    return json.loads(json.dumps({"denoiser": describe(denoiser), "statistic": describe(statistic)}))


def write_scores(
    path: Path, scores: Tensor, denoiser: Denoiser, statistic: PerturbationScore, data: dict[str, Any], seed: int
) -> Path:
    """Write ``scores`` (n,) and how they were made to ``path``; the file is replaced atomically."""
    made_by = {**provenance(denoiser, statistic), "data": data, "seed": seed}
    record = {"schema": _SCHEMA, "made_by": made_by, "scores": scores.double().tolist()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(record))
    partial.replace(path)
    return path
