"""What the theory of distribution transfer says of losses, on the digits: `python -m benchmarks.loss_distances`.

The 2023 paper calls adversarial images a corner case of images from outside of the training distribution: within the
same distance an attack changes the loss more than an augmentation (equation 2), the loss grows from images of the
distribution over others to adversarial ones (section 3.1), and who is better on the second is better on the third
(section 4.5.5). Measured over three victims, each before four purifiers; the attack is PGD+EOT, exact.
"""

from lustral import environment  # noqa: F401, I001

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules import Digits
from lustral.attacks import PGD, Cases, Engine
from lustral.defence import Defence
from lustral.diffusion import EulerMaruyama
from lustral.networks import WideResNet, load_denoiser
from lustral.noise import NoiseStream
from lustral.purifiers import DiffPure, GaussianBlur, Identity, Purifier
from lustral.threat import ThreatModel

DENOISER = Path("runs/train/digits_diffusion/weights.safetensors")
THREAT = ThreatModel("linf", 0.15)
DRAWS = 8

Change = Callable[[Tensor, NoiseStream], Tensor]
AUGMENTATIONS: dict[str, Change] = {
    "noise": lambda x, noise: (x + 0.15 * noise.fork("noise").normal(x.shape[1:])).clamp(0, 1),
    "blur": lambda x, noise: GaussianBlur(0.8)(x, noise).images[0],
    "half contrast": lambda x, noise: 0.5 * x + 0.25,
    "brighter": lambda x, noise: (x + 0.15).clamp(0, 1),
    "one pixel to the right": lambda x, noise: F.pad(x, (1, 0, 0, 0))[..., :-1],
}


def trained(how: str, x: Tensor, y: Tensor, epochs: int = 12) -> WideResNet:
    """A small victim, trained on ``x`` alone ("clean"), with noise ("noisy"), or on one-step "adversarial" images."""
    torch.manual_seed(0)
    victim = WideResNet(10, 1, channels=1, image_size=8)
    steps = epochs * (len(x) // 64)
    optimiser = torch.optim.AdamW(victim.parameters(), 0.01, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.01, steps)
    for step in range(steps):
        rows = torch.randperm(len(x))[:64]
        image, noise = x[rows], NoiseStream(step, rows)
        if how == "noisy":
            image = (image + 0.15 * noise.normal(image.shape[1:])).clamp(0, 1)
        if how == "adversarial":
            start = THREAT.random_point(image, noise).requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(victim(start), y[rows]), start)
            image = THREAT.project(start.detach() + 1.25 * THREAT.budget * gradient.sign(), image)
        optimiser.zero_grad()
        F.cross_entropy(victim(image), y[rows]).backward()
        optimiser.step()
        schedule.step()
    return victim.eval().requires_grad_(False)


def purifiers() -> dict[str, Purifier]:
    denoiser = load_denoiser(str(DENOISER))
    return {
        "none": Identity(),
        "blur": GaussianBlur(0.5),
        "DiffPure, t* = 25": DiffPure(denoiser, EulerMaruyama(), 25, 3),
        "DiffPure, t* = 75": DiffPure(denoiser, EulerMaruyama(), 75, 4),
    }


def ranks(values: np.ndarray) -> np.ndarray:
    return values.argsort().argsort().astype(float)


def correlations(losses: np.ndarray) -> np.ndarray:
    """Spearman's, of in and outside of the distribution, in it and adversarial, outside and adversarial; ``losses`` is
    (3, systems)."""
    found = np.corrcoef([ranks(row) for row in losses])
    return found[[0, 0, 1], [1, 2, 2]]


def main(num_test: int = 60) -> None:
    if not DENOISER.is_file():
        raise ValueError(
            f"There is no {DENOISER}: make it with `python cli.py fit -c configs/train/digits_diffusion.yaml`."
        )
    data = Digits(batch_size=2000, num_test=num_test)
    data.setup("fit")
    data.setup("test")
    train_x, train_y, _ = next(iter(data.train_dataloader()))
    x, y, index = next(iter(data.test_dataloader()))
    noise = NoiseStream(0, index)
    print(
        f"{num_test} test digits, linf {THREAT.eps}, PGD 10 x EOT 4, losses over {DRAWS} draws; augmentations: "
        f"{', '.join(AUGMENTATIONS)}\n"
    )
    print(
        "| victim | purifier | loss: in | outside | adversarial | per unit of l2: outside | most | adversarial "
        "| accuracy: in | outside | adversarial |"
    )
    print("|---" * 11 + "|")
    table: list[np.ndarray] = []
    for how in ("clean", "noisy", "adversarial"):
        victim = trained(how, train_x, train_y)
        for name, purifier in purifiers().items():
            defence = Defence(victim, purifier).eval().requires_grad_(False)
            engine = Engine(defence, 64)
            attack = PGD(10, eot=4, selection_draws=DRAWS)
            attacked = attack(engine, Cases(x, y, index), THREAT, noise).images
            changed = [change(x, noise.fork("augment")) for change in AUGMENTATIONS.values()]

            def judged(images: Tensor, engine: Engine = engine) -> tuple[Tensor, Tensor]:
                logits = engine.logits(images, noise.fork("verdict"), DRAWS)
                loss = F.cross_entropy(logits.flatten(0, 1), y.repeat(DRAWS), reduction="none").view(DRAWS, -1).mean(0)
                return loss.double(), (logits.argmax(-1) == y).double().mean(0)

            own, right = judged(x)
            others, adversarial = [judged(images) for images in changed], judged(attacked)

            def slope(images: Tensor, loss: Tensor, own: Tensor = own) -> float:
                return float(((loss - own) / (images - x).flatten(1).norm(dim=1).double()).mean())

            slopes = [slope(images, loss) for images, (loss, _) in zip(changed, others, strict=True)]
            outside = torch.stack([loss for loss, _ in others]).mean(0)
            numbers = [own.mean(), outside.mean(), adversarial[0].mean(), np.mean(slopes), max(slopes)]
            numbers += [slope(attacked, adversarial[0])]
            rates = [right.mean(), torch.stack([each for _, each in others]).mean(), adversarial[1].mean()]
            cells = [f"{float(each):.2f}" for each in numbers] + [f"{100 * float(each):.0f} %" for each in rates]
            print(f"| {how} | {name} | {' | '.join(cells)} |", flush=True)
            table.append(torch.stack([own, outside, adversarial[0]]).numpy())
    losses = np.stack(table, 1)  # (3, systems, images)
    draw = np.random.default_rng(0)
    again = [correlations(losses[:, :, draw.integers(0, num_test, num_test)].mean(2)) for _ in range(1000)]
    low, high = np.quantile(again, (0.025, 0.975), axis=0)
    print(f"\nRank correlation of the mean losses over {losses.shape[1]} systems [95 % over images]:")
    for k, pair in enumerate(("in and outside", "in and adversarial", "outside and adversarial")):
        print(f"{pair}: {correlations(losses.mean(2))[k]:.2f} [{low[k]:.2f}, {high[k]:.2f}]")


if __name__ == "__main__":
    main()
