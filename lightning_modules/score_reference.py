"""The computation of reference scores for SSNI: perturbation scores of held-out images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_modules.checks import check_fit
from lightning_modules.module import LustralModule
from lustral.diffusion import Denoiser, to_diffusion
from lustral.diffusion.perturbation import PerturbationScore, perturbation
from lustral.noise import NoiseStream
from lustral.purifiers.reference import write_scores

Batch = tuple[Tensor, Tensor, Tensor]


class ScoreReference(LustralModule):
    """Scores the validation images and writes ``reference.json``. Run with ``cli.py validate``.

    The validation images are held out from every network that is trained here. Scores are smaller on images that the
    denoiser was trained on; with a reference of such scores every test image would seem perturbed.

    Args:
        denoiser: the diffusion model of the purifier that will use the scores.
        statistic: the perturbation score that the purifier uses.
        any_size: accept images of another size than the denoiser was trained on, as SSNI's authors do for ImageNet (224
            pixels in a network of 256).
        seed: of the scores' noise.
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        "fit": "Reference scores train nothing: run this with `python cli.py validate`.",
        "test": "Reference scores are those of held-out images: run this with `python cli.py validate`.",
        "predict": "Reference scores predict nothing: run this with `python cli.py validate`.",
    }
    takes_checkpoint = False

    def __init__(self, denoiser: Denoiser, statistic: PerturbationScore, any_size: bool = False, seed: int = 0) -> None:
        super().__init__()
        self.denoiser, self.statistic, self.seed = denoiser.eval().requires_grad_(False), statistic, seed
        self.any_size = any_size
        self._found: dict[int, float] = {}

    @classmethod
    def refuse(cls, subcommand: str, config: Any) -> None:
        super().refuse(subcommand, config)
        trainer = config.trainer
        if trainer.fast_dev_run or trainer.limit_val_batches is not None or trainer.overfit_batches:
            raise ValueError(
                "trainer.limit_val_batches, trainer.overfit_batches and trainer.fast_dev_run would make a reference of "
                "a part of the validation images: leave them out, and choose how many there are with --data.num_val."
            )

    def untrained(self) -> list[str]:
        """The parts that have random weights."""
        learns = next(self.denoiser.parameters(), None) is not None
        return ["denoiser"] if learns and getattr(self.denoiser, "weights", None) is None else []

    def setup(self, stage: str) -> None:
        if not self.any_size:
            check_fit(getattr(self.trainer, "datamodule", None), [("denoiser", self.denoiser)])

    def on_validation_start(self) -> None:
        self._found = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        x, _, index = batch
        noise = NoiseStream(self.seed, index).fork("reference")
        scores = perturbation(self.statistic, self.denoiser, to_diffusion(x), noise)
        self._found |= dict(zip(index.tolist(), scores.tolist(), strict=True))

    def on_validation_epoch_end(self) -> None:
        parts: list[Any] = [self._found]
        if dist.is_available() and dist.is_initialized():
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, self._found)
        found = {index: score for part in parts for index, score in part.items()}
        scores = torch.tensor([found[index] for index in sorted(found)], dtype=torch.float64)
        self.log_dict(
            {"reference/mean": scores.mean().float(), "reference/std": scores.std().float()}, rank_zero_only=True
        )
        if self.trainer.is_global_zero:
            datamodule = getattr(self.trainer, "datamodule", None)
            data = {} if datamodule is None else {"name": datamodule.name, "split": "validation", "images": len(found)}
            path = Path(self.trainer.default_root_dir) / "reference.json"
            write_scores(path, scores, self.denoiser, self.statistic, data, self.seed)
            rank_zero_info(f"Scores of {len(found)} images: {path}")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        raise ValueError(self.unsupported["test"])

    def configure_optimizers(self) -> Any:
        raise ValueError(self.unsupported["fit"])
