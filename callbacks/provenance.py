"""Provenance: the resolved config, package versions and device, stored beside the results."""

import json
import os
import platform
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.attack_records import AttackRecords
from callbacks.tensorboard import DeferredTensorBoard

PACKAGES = (
    "lustral",
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "timm",
    "diffusers",
    "numpy",
    "scikit-learn",
)

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is seven times faster


class Provenance(SaveConfigCallback):
    """Saves ``config_<stage>.yaml`` and ``provenance/<stage>-<time>.json`` into the run folder when a stage starts, and
    shows the config in TensorBoard. Every start has its own provenance file, since another machine may resume a run.

    Lightning's own callback refuses a second run in a folder. Here a killed run is resumed by a second run, so the
    config file of a stage is overwritten. Lightning's callback also saves before a run can be refused, for weights that
    do not fit or records of another evaluation. This one saves afterwards, so that a refused run leaves the folder
    unchanged; it must come after the callbacks that may refuse.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing is saved here, since the run may still be refused."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._accepted(trainer, pl_module)

    on_test_start = on_predict_start = on_train_start

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._accepted(trainer, pl_module)

    def _accepted(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, DeferredTensorBoard):
                    logger.opened = True
            self.save_config(trainer, pl_module, str(getattr(trainer.state.fn, "value", trainer.state.fn)))

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)
        text = self.parser.dump(self.config, skip_none=False)
        facts = json.dumps(_facts(trainer, stage, yaml.load(text, _LOADER)), indent=1, default=str) + "\n"
        (folder / "provenance").mkdir(parents=True, exist_ok=True)
        _write(folder / f"config_{stage}.yaml", text)
        _write(folder / "provenance" / f"{stage}-{time.time_ns():020d}.json", facts)
        if isinstance(trainer.logger, TensorBoardLogger):
            indented = "\n".join("    " + line for line in text.splitlines())  # a code block in TensorBoard's Markdown
            trainer.logger.experiment.add_text(f"config/{stage}", indented)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


def _facts(trainer: Trainer, stage: str, config: dict[str, Any]) -> dict[str, Any]:
    device = trainer.strategy.root_device
    return {
        "stage": stage,
        "fingerprint": _fingerprint(trainer),
        "recipe": [str(path) for path in config.get("config") or []],
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": ["cli.py", *sys.argv[1:]],
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " CPU",
        "processes": trainer.world_size,
        "config": config,
    }


def _fingerprint(trainer: Trainer) -> str | None:
    """The hash of the evaluation's fingerprint, if this start writes records; None otherwise."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    found = [c.fingerprint for c in callbacks if isinstance(c, AttackRecords)]
    return found[0].sha256 if found and found[0] is not None else None


def _version(package: str) -> str | None:
    """The installed version; None for a package that runs from its source folder."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the code, with a + if files were changed since; None outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        # Without locks: `git status` may rewrite the index, and would leave the repository locked if it were killed.
        command = ["git", "--no-optional-locks", *arguments]
        return subprocess.run(command, cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
