"""After the test loop has returned: wait for the other processes' records, then card, panels and screen."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.attack_records import AttackRecords
from callbacks.heartbeat import Watch
from callbacks.panels import Panels
from lustral.evaluation import write_card
from lustral.evaluation.records import Key, record_keys
from lustral.reporting.terminal import show_card

POLL_SECONDS = 2.0
TELL_SECONDS = 60.0


def finish_evaluation(trainer: Trainer, module: Any, datamodule: Any, advice: str) -> dict[str, Any]:
    """Make the card once every expected record is there, and show it. Called by the first process, outside the loop.

    No collective is used: processes finish at very different times, one may have had nothing to do, and a barrier
    would time out.

    Args:
        advice: how the run goes on if it cannot be finished, in a sentence.

    Raises:
        OSError: if a process has ended without its records.
    """
    folder = Path(trainer.default_root_dir)
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    start = next((c.start for c in callbacks if isinstance(c, AttackRecords)), "")
    shares = [set(share) for share in module.dealing.shares(trainer.world_size)]
    watch = Watch(folder, start)
    try:
        wait_for(folder / "records", shares, watch, advice)
    finally:
        watch.clear()
    card = write_card(folder, module.dealing.keys)
    panels = next((c for c in callbacks if isinstance(c, Panels)), None)
    if panels is not None:
        print("drawing panels", file=sys.stderr, flush=True)
    figures = panels.draw(module, datamodule, folder, trainer.strategy.root_device) if panels is not None else {}
    for stem, figure in figures.items():
        figure.savefig(folder / f"{stem}.png", dpi=160)
    if isinstance(trainer.logger, TensorBoardLogger):
        _log(trainer.logger, card, figures)
    show_card(folder, card, [f"{stem}.png" for stem in figures])
    return card


def wait_for(records: Path, shares: Sequence[set[Key]], watch: Watch, advice: str) -> None:
    """Until every record of ``shares``, the keys of each process, is there; says now and then how many are missing.

    Raises:
        OSError: once no process that owes a record is at work any more.
    """
    told = time.monotonic()
    while True:
        # In this order: a process writes its last record, and then that it ends.
        works = {rank for rank in range(1, len(shares)) if watch.works(rank)}
        found = record_keys(records)
        owing = {rank: len(share - found) for rank, share in enumerate(shares) if share - found}
        if not owing:
            return
        if not works & owing.keys():
            named = " and ".join(str(rank) for rank in owing)
            raise OSError(
                f"{sum(owing.values())} records are missing in {records}: process {named} ended before writing them. "
                f"{advice}"
            )
        time.sleep(POLL_SECONDS)
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            missing = sum(owing.values())
            print(f"waiting for {missing} records of other processes in {records}", file=sys.stderr, flush=True)


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
