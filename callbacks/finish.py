"""After the test loop has returned: wait for the other processes' records, then card, TensorBoard and panels."""

import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.panels import Panels
from lustral.evaluation import write_card
from lustral.evaluation.records import record_indices

POLL_SECONDS = 2.0
TELL_SECONDS = 60.0


def finish_evaluation(trainer: Trainer, module: Any, datamodule: Any) -> dict[str, Any]:
    """Make the card once every expected record is there. Called by the first process only, outside the loop.

    No collective is used: processes finish at very different times, one may have had nothing to do, and a barrier
    would time out. A process that dies takes the run down through its launcher.
    """
    folder = Path(trainer.default_root_dir)
    expected = set(datamodule.test_indices)
    _wait_for(folder / "records", expected)
    card = write_card(folder, expected)
    panels = next((c for c in trainer.callbacks if isinstance(c, Panels)), None)  # type: ignore[attr-defined]
    figures = panels.draw(module, datamodule, folder, trainer.strategy.root_device) if panels is not None else {}
    for stem, figure in figures.items():
        figure.savefig(folder / f"{stem}.png", dpi=160)
    if isinstance(trainer.logger, TensorBoardLogger):
        _log(trainer.logger, card, figures)
    return card


def _wait_for(records: Path, expected: set[int]) -> None:
    """Until every expected record is there; says now and then how many are missing."""
    told = time.monotonic()
    while missing := expected - record_indices(records):
        time.sleep(POLL_SECONDS)
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            print(f"waiting for {len(missing)} records of other processes in {records}", file=sys.stderr, flush=True)


def _log(logger: TensorBoardLogger, card: dict[str, Any], figures: dict[str, Any]) -> None:
    metrics = {
        f"card/{rule}_{kind}": verdict[kind]["value"]
        for rule, verdict in card["verdicts"].items()
        for kind in ("clean", "robust")
    }
    attack, defence = card["attack"], card["defence"]
    parameters = {
        "purifier": defence["purifier"]["class"],
        **{f"purifier/{k}": v for k, v in defence["purifier"].items() if isinstance(v, (bool, int, float, str))},
        **{f"attack/{k}": v for k, v in attack.items() if isinstance(v, (bool, int, float, str))},
        **{f"threat/{k}": str(v) for k, v in attack["threat"].items()},
        "seed": card["seed"],
        "status": card["status"],
    }
    logger.log_hyperparams(parameters, metrics)
    logger.log_metrics(metrics, step=card["n"])
    for stem, figure in figures.items():
        logger.experiment.add_figure(stem, figure, global_step=card["n"])
    logger.save()
