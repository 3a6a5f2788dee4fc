"""Exports the trained network as one safetensors file, from which it can be rebuilt."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lustral.detectors import Kernel, save_kernel
from lustral.networks import save_network


class WeightExport(Callback):
    """Writes ``weights.safetensors`` into the run folder when a training ends, for modules that have an ``exported``
    network. With an `EMA` callback, the module has the averaged weights by then.

    Nothing is written after a training without any step (max_epochs 0) or with a single test batch (fast_dev_run),
    which Lightning also ends in the usual way."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network = getattr(pl_module, "exported", None)
        if network is None or not trainer.is_global_zero:
            return
        if trainer.global_step == 0 or trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_info("Nothing was trained, so no weights are written.")
            return
        notes = {"step": str(trainer.global_step), "epoch": str(trainer.current_epoch)}
        notes |= {name: f"{float(value):.6g}" for name, value in trainer.callback_metrics.items() if "val/" in name}
        # A kernel is not among the networks that a weights file rebuilds: its frozen features are given anew.
        save = save_kernel if isinstance(network, Kernel) else save_network
        path = save(network, Path(trainer.default_root_dir) / "weights.safetensors", notes)
        rank_zero_info(f"Weights: {path}")
