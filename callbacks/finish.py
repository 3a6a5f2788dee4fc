"""The end of an evaluation, after the test loop: wait for other processes' records, make the card, show it."""

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
from lustral.evaluation.records import Key, record_keys

POLL_SECONDS = 2.0
TELL_SECONDS = 60.0


def finish_evaluation(trainer: Trainer, module: Any, datamodule: Any, advice: str) -> dict[str, Any]:
    """Wait until every expected record exists, make the card and show it; returns the card.

    Called by the first process, after the test loop. No collective is used: processes finish at very different times,
    some may have had nothing to do, and a barrier would time out.

    Args:
        trainer: the trainer of the test loop.
        module: the evaluation.
        datamodule: its data, for the panels.
        advice: a sentence on how to resume the run, for the error message.

    Raises:
        OSError: if a process has ended without writing its records.
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
    card = module.write_card(folder)
    figures = module.card_figures(folder, card)
    panels = next((c for c in callbacks if isinstance(c, Panels)), None)
    if panels is not None and module.attacked:
        print("drawing panels", file=sys.stderr, flush=True)
        figures |= panels.draw(module, datamodule, folder, trainer.strategy.root_device)
    for stem, figure in figures.items():
        figure.savefig(folder / f"{stem}.png", dpi=160)
    if isinstance(trainer.logger, TensorBoardLogger):
        parameters, metrics = module.card_metrics(card)
        _log(trainer.logger, card, parameters, metrics, figures)
    module.show_card(folder, card, [f"{stem}.png" for stem in figures])
    return card


def wait_for(records: Path, shares: Sequence[set[Key]], watch: Watch, advice: str) -> None:
    """Wait until every record of ``shares`` (the keys of each process) exists; the number of missing records is printed
    from time to time.

    Raises:
        OSError: if records are missing and no process that should write them is still running.
    """
    told = time.monotonic()
    while True:
        # First the heartbeats, then the records: a process writes its last record before it reports that it has ended.
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


def _log(
    logger: TensorBoardLogger,
    card: dict[str, Any],
    parameters: dict[str, Any],
    metrics: dict[str, float],
    figures: dict[str, Any],
) -> None:
    logger.log_hyperparams(parameters, metrics)
    logger.log_metrics(metrics, step=card["n"])
    for stem, figure in figures.items():
        logger.experiment.add_figure(stem, figure, global_step=card["n"])
    logger.save()
