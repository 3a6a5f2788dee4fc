"""CT, iCT, ECT and CD on the same budget: `python -m benchmarks.consistency_objectives --steps 2000`.

Each trains the network of configs/train/digits_consistency.yaml for as many steps, with the same optimiser. What starts
from a diffusion model spends half of its steps on that. A line each: Frechet distance to the test digits in units of
that of the training digits, in one step and in two, the class shares in one step, and CPU seconds. Needs the digits'
classifier.
"""

from lustral import environment  # noqa: F401, I001

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from callbacks import EMA
from datamodules import Digits
from lightning_modules import ConsistencyTraining, DiffusionTraining
from lustral.diffusion import (
    ConsistencyDistillation,
    ConsistencyLoss,
    ConsistencyTrainingLoss,
    Denoiser,
    EasyConsistencyTuning,
    EDMLoss,
    ImprovedConsistencyTraining,
    MultistepConsistency,
)
from lustral.diffusion.sampling import sample
from lustral.metrics import FrechetDistance
from lustral.networks import SongUNetDenoiser, load_classifier, load_denoiser, save_network
from lustral.noise import NoiseStream
from lustral.training import WarmupCosine

CLASSIFIER = "runs/train/digits_classifier/weights.safetensors"
SIGMA_DATA = 0.74
MIDDLE = 0.8


def network(preconditioning: Any = "consistency") -> SongUNetDenoiser:
    torch.manual_seed(0)
    return SongUNetDenoiser(
        8,
        1,
        16,
        (1, 2),
        1,
        (4,),
        dropout=0.0,
        preconditioning=preconditioning,
        sigma_data=SIGMA_DATA,
        sigma_max=20.0,
    )


def trained(module: LightningModule, steps: int, folder: Path) -> Denoiser:
    """The averaged network after ``steps`` steps."""
    trainer = Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        callbacks=[EMA(0.99)],
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=Digits(batch_size=64))
    denoiser: Any = module.denoiser
    return denoiser.eval()


def consistency(loss: ConsistencyLoss, steps: int, folder: Path, lr: float, initial: str | None = None) -> Denoiser:
    module = ConsistencyTraining(
        network(), loss, initial, lambda p: torch.optim.RAdam(p, lr, foreach=True), lambda o: WarmupCosine(o, 0.0)
    )
    return trained(module, steps, folder)


def diffusion(steps: int, folder: Path) -> str:
    """The weights file of a diffusion model."""
    loss, adam = EDMLoss(-0.8, 1.2, SIGMA_DATA), lambda p: torch.optim.Adam(p, 4e-3, fused=True)
    module = DiffusionTraining(network("edm"), loss, adam, lambda o: WarmupCosine(o, 0.1))
    return str(save_network(trained(module, steps, folder), folder / "edm.safetensors"))


def objectives(steps: int, lr: float, folder: Path) -> dict[str, Callable[[], Denoiser]]:
    half, mean, std = steps // 2, 0.0, 1.6

    def tuned() -> Denoiser:
        return consistency(EasyConsistencyTuning(256, 1, mean, std), half, folder, lr, diffusion(half, folder))

    def distilled() -> Denoiser:
        teacher = diffusion(half, folder)
        return consistency(ConsistencyDistillation(load_denoiser(teacher), 18), half, folder, lr, teacher)

    return {
        "CT": lambda: consistency(ConsistencyTrainingLoss(2, 40), steps, folder, lr),
        "iCT": lambda: consistency(ImprovedConsistencyTraining(10, 80, mean, std), steps, folder, lr),
        "ECT q=256": lambda: consistency(EasyConsistencyTuning(256, 1, mean, std), steps, folder, lr),
        "ECT q=2": lambda: consistency(EasyConsistencyTuning(2, 5, mean, std), steps, folder, lr),
        "EDM + ECT q=256": tuned,
        "EDM + CD": distilled,
    }


def main(steps: int, lr: float, only: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    data = Digits()
    distance = FrechetDistance(load_classifier(CLASSIFIER))
    distance.update(data.test_images(data.test_indices), real=True)
    distance.update(torch.stack([data.train_source.image(i) for i in data.train_parts[0]]), real=False)
    unit = float(distance.compute())
    print(f"{steps} steps, lr {lr}; training to test digits: {unit:.3f}", flush=True)
    for name, train in objectives(steps, lr, Path(tempfile.mkdtemp())).items():
        if only and name not in only:
            continue
        start = time.process_time()
        denoiser, found = train(), []
        spent = time.process_time() - start
        for sigmas in ([], [MIDDLE]):
            noise = NoiseStream(0, torch.arange(2000)).fork("samples")
            distance.reset()
            distance.update(sample(denoiser, noise, MultistepConsistency(sigmas), len(sigmas) + 1), real=False)
            found.append((float(distance.compute()) / unit, distance.class_shares()))
        (one, shares), (two, _) = found
        print(
            f"{name:16} one step {one:6.2f}  two steps {two:6.2f}  classes {float(shares.min()):.3f} ... "
            f"{float(shares.max()):.3f}  {spent:.0f} s of CPU",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--only", nargs="*", default=[])
    arguments = parser.parse_args()
    main(arguments.steps, arguments.lr, arguments.only)
