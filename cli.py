#!/usr/bin/env python
"""The front door of Lustral.

    python cli.py fit  -c configs/train/RECIPE.yaml      train a network; writes runs/train/RECIPE/weights.safetensors
    python cli.py test -c configs/eval/RECIPE.yaml       attack a defence; writes runs/eval/RECIPE/card.json
    python cli.py predict -c configs/eval/RECIPE.yaml    classes of clean images; writes predictions-rank0.csv
    python cli.py table configs/tables/TABLE.yaml        a paper's table, measured beside published; --list, --rows 3,5
    python cli.py report RUN_DIR ...                     tables and figures of finished runs
    python cli.py import --format F --source FILE --output weights/NAME.safetensors        published weights

Every option of a recipe can be changed on the command line: --data.num_test 100, --model.threat.eps 8/255,
--model.attack.num_steps 50, --trainer.devices 8 --trainer.strategy ddp, --trainer.default_root_dir DIR.

    python cli.py test --help                            every option of the trainer
    python cli.py test --model.help lightning_modules.RobustnessEvaluation        of an evaluation
    python cli.py test -c RECIPE.yaml --model.attack.help lustral.attacks.PGD     of a part of it
    python cli.py test -c RECIPE.yaml --print_config     the recipe with everything filled in

Recipes: configs/train and configs/eval. A second -c varies one: -c configs/trainer/ddp.yaml. See README.md.
"""

import gc

gc.disable()  # a fifth of the start would go into looking for garbage among what is imported, which stays

from lustral import environment  # noqa: F401, I001  (before torch and torchvision are used)

import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import torch
from jsonargparse import ArgumentError, get_loader, set_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from callbacks import (
    AttackRecords,
    DeferredTensorBoard,
    FiniteLoss,
    InnerProgress,
    Panels,
    Predictions,
    Provenance,
    Stopping,
    WeightExport,
)
from callbacks.finish import finish_evaluation
from lightning_modules import LustralModule
from lightning_modules.checks import check_checkpoint
from yaml import YAMLError

from lustral.choices import check_choices, resets
from lustral.complaints import plain, surprising
from lustral.networks.importing.command import run_command as import_weights
from lustral.recipes import check_folder, forget_weights, imported, run_folder
from lustral.reporting.command import run_command as report
from lustral.reporting.table_command import run_command as table

gc.freeze()
gc.enable()

BASE = Path(__file__).parent / "configs" / "base.yaml"
SUSPECT_EXIT_CODE = 3


class LustralCLI(LightningCLI):
    """LightningCLI with the guards that an honest evaluation needs."""

    card: dict[str, Any] | None = None

    def __init__(self, stopping: Stopping, *args: Any, **options: Any) -> None:
        self.stopping = stopping
        super().__init__(*args, **options)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Each is a parser of all options of a trainer, and a command needs one."""
        return _subcommands(self.stopping.words)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--allow_untrained",
            type=bool,
            default=False,
            help="Try the machinery with random weights: weights files that the recipe names are not loaded.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        words = sys.argv[1:] if args is None else [str(word) for word in args]
        named = any(word.partition("=")[0] in ("-c", "--config", "-h") or "help" in word for word in words)
        if words[0] in self.subcommands() and not named:
            raise ValueError(f"No recipe is named: python cli.py {words[0]} -c configs/.../RECIPE.yaml.")
        check_choices(words, {"trainer": "lightning.pytorch.Trainer"})
        super().parse_arguments(parser, [*words, *resets(words)])

    def _parse_ckpt_path(self) -> None:
        """Hyper-parameters saved in a checkpoint may not overrule the config: its weights are taken, nothing else."""

    def before_instantiate_classes(self) -> None:
        config = self.config[str(self.subcommand)]
        trainer = config.trainer
        if trainer.default_root_dir is None:
            trainer.default_root_dir = str(run_folder([str(path) for path in config.config or []]))
        trainer.default_root_dir = os.path.expanduser(trainer.default_root_dir)
        if config.get("ckpt_path"):
            config.ckpt_path = os.path.expanduser(config.ckpt_path)
        _check_processes(trainer)
        check_folder(trainer.default_root_dir)
        kind = _asked(imported(config.model.class_path))
        if trainer.enable_progress_bar is None and kind.own_progress:
            trainer.enable_progress_bar = False
        kind.refuse(str(self.subcommand), config)
        if trainer.use_distributed_sampler:
            raise ValueError(
                "trainer.use_distributed_sampler pads the last batch with repeated samples, which makes every number "
                "wrong: leave it false; the data modules bring samplers that do not repeat."
            )
        if config.allow_untrained:
            forget_weights(config.model)
        if self.subcommand == "test" and trainer.plugins is None and SLURMEnvironment.detect():
            # A requeued evaluation simply starts again and skips what is recorded.
            trainer.plugins = [SLURMEnvironment(auto_requeue=False)]

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        self.stopping.trainer = trainer = super().instantiate_trainer(**kwargs)
        config = self.config[str(self.subcommand)].trainer
        if trainer.world_size > 1 and isinstance(trainer.accelerator, CPUAccelerator):
            torch.set_num_threads(1)  # processes share the cores; threads on top of them only fight
        if self._get(self.config, "trainer.logger") is None and not config.fast_dev_run:
            trainer.logger = DeferredTensorBoard(trainer.default_root_dir, name="tensorboard", version="")
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        return trainer

    def before_fit(self) -> None:
        check_checkpoint(self.model, self._get(self.config, "ckpt_path"), resumes=True)

    def before_test(self) -> None:
        path = self._get(self.config, "ckpt_path")
        untrained = [] if path is not None else _asked(type(self.model)).untrained(self.model)
        if untrained and not self._get(self.config, "allow_untrained"):
            raise ValueError(
                f"The weights of {', '.join(untrained)} are random, so the numbers would mean nothing: name a weights "
                "file (its `weights` option), or pass --allow_untrained=true to try the machinery."
            )
        check_checkpoint(self.model, path, resumes=False)
        self.datamodule.prepare_data()  # missing data is told before any process starts to work

    before_validate = before_predict = before_test

    def after_test(self) -> None:
        if _asked(type(self.model)).makes_card and self.trainer.is_global_zero:
            self.card = finish_evaluation(self.trainer, self.model, self.datamodule, self.stopping.advice())


def _subcommands(words: Sequence[str]) -> dict[str, set[str]]:
    """Lightning's subcommand that a command line starts with; all of them if it is another word."""
    known = LightningCLI.subcommands()
    return {name: known[name] for name in (known.keys() & set(words[:1]) or known)}


def _asked(made_by: Any) -> type[LustralModule]:
    """Who answers for the modules of a class, or for those that a function says it returns: their own class, or
    LustralModule for a LightningModule from elsewhere."""
    kind = made_by if isinstance(made_by, type) else get_type_hints(made_by).get("return")
    return kind if isinstance(kind, type) and issubclass(kind, LustralModule) else LustralModule


def _check_processes(trainer: Any) -> None:
    """A number of processes that can be started at all: each is a whole Python with its own networks."""
    devices, cores = str(trainer.devices), max(2, os.cpu_count() or 1)
    if not re.fullmatch(r"auto|-1|[1-9]\d*|\[?\d+(, *\d+)*,?\]?", devices):
        raise ValueError(f"trainer.devices is {devices!r}; it must be a number from 1 on, a list of GPUs, or auto.")
    on_cpu = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not torch.accelerator.is_available())
    if on_cpu and devices.isdigit() and int(devices) > cores:
        raise ValueError(f"trainer.devices is {devices}, but this machine has {cores} cores: give at most so many.")


_yaml_value = get_loader("yaml")


def _value(text: str) -> Any:
    """A word of the command line or a YAML file as its value. The parser hands ``null`` from part to part as Python
    writes it, and would then take that for a name."""
    return None if text.strip() == "None" else _yaml_value(text)


def _quieten() -> None:
    """Leave out what Lightning says at every start and nobody can act on."""
    for message in (
        ".*does not have many workers.*",  # the digits are in memory; real data sets set num_workers in their config
        "LightningCLI's args parameter is intended.*",
        ".*LeafSpec.* is deprecated.*",  # Lightning's own use of torch
        "Found .* module.s. in eval mode at the start of training.*",  # frozen networks inside a trained part
        ".*Checkpoint directory .* exists and is not empty.*",  # a second training in a folder is a resumed one
    ):
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).addFilter(lambda record: "💡" not in record.getMessage())


def main(args: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code: 0, 1 for an error (told in a sentence), 3 for failed samples. SIGTERM
    ends the process with 143, Ctrl-C with 130."""
    words = sys.argv[1:] if args is None else list(args)
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if words else 1
    _quieten()
    set_loader("yaml", _value)
    try:
        if words[:1] == ["report"]:
            return report(words[1:])
        if words[:1] == ["table"]:
            return table(words[1:], Path(__file__).resolve())
        if words[:1] == ["import"]:
            return import_weights(words[1:])
        with Stopping(words) as stopping:
            card = _run(stopping, words, args is None)
    except (ValueError, OSError, ImportError, ArgumentError, MisconfigurationException, YAMLError) as error:
        if os.environ.get("LUSTRAL_TRACEBACK"):
            raise
        print(f"error: {plain(error)}", file=sys.stderr)
        return 1
    except Exception as error:  # foreseen by nobody: told honestly, and in one sentence all the same
        if os.environ.get("LUSTRAL_TRACEBACK"):
            raise
        print(f"error: {surprising(error)}", file=sys.stderr)
        return 1
    return SUSPECT_EXIT_CODE if card is not None and card.get("audit", card)["failed_samples"] else 0


def _run(stopping: Stopping, words: Sequence[str], typed: bool) -> dict[str, Any] | None:
    """One of Lightning's subcommands; returns the card if it made one. ``typed`` says that words are the process's."""
    training = [FiniteLoss(), LearningRateMonitor(), WeightExport()]
    defaults = {"callbacks": [*training, AttackRecords(), InnerProgress(), Panels(), Predictions()]}
    stage = {"default_config_files": [str(BASE)], "exit_on_error": False, "allow_abbrev": False}
    cli = LustralCLI(
        stopping,
        LightningModule,
        LightningDataModule,
        save_config_callback=Provenance,
        save_config_kwargs={"save_to_log_dir": False, "overwrite": True},
        trainer_defaults=defaults,
        seed_everything_default=0,
        parser_kwargs={"exit_on_error": False, **dict.fromkeys(_subcommands(words), stage)},
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        args=None if typed else list(words),
    )
    return cli.card


if __name__ == "__main__":
    sys.exit(main())
