"""What one-hop resampling saves, and what it costs in quality: `python -m benchmarks.resampling_cost`.

Pei et al. (CVPR 2025, sections 4 and 7): with U = 20 and 10 steps one hop takes 89 % less time than U repeated steps
and, with the whole graph kept, 87 % less memory. Time and live tensor bytes are measured on one image of CIFAR-10's
size before a small network, at the paper's levels; quality on digits, whose middle is blanked and filled in.
"""

from lustral import environment  # noqa: F401, I001

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import interleaved
from datamodules import Digits
from lustral.evaluation.cost import MIB, LiveBytes
from lustral.metrics import FrechetDistance
from lustral.networks import UNetDenoiser, load_classifier, load_denoiser
from lustral.noise import NoiseStream
from lustral.purifiers import ConstantMask, HeterogeneousNoise, Mask
from lustral.purifiers.masks import Activations
from lustral.rows import Runtime

RUNS = Path("runs/train")
KEPT = 1e15
"""Bytes: more than any graph takes."""


class Middle(Mask):
    """The middle of every image, a quarter of its pixels."""

    def __call__(self, x: Tensor, size: tuple[int, int], activations: Activations, noise: NoiseStream) -> Tensor:
        found = x.new_zeros(len(x), 1, *size)
        found[..., size[0] // 4 : -size[0] // 4, size[1] // 4 : -size[1] // 4] = 1.0
        return found


def cost(rounds: int, num_steps: int) -> None:
    """Prints time and memory of both manners, and their ratios."""
    torch.manual_seed(0)
    denoiser = UNetDenoiser(32, 3, (16, 32), 1, (False, True), norm_groups=8, dropout=0.0, preconditioning="linear")
    x, noise = torch.rand(1, 3, 32, 32), NoiseStream(0, torch.arange(1))

    def purifier(resample: Any, budget: float) -> HeterogeneousNoise:
        made = HeterogeneousNoise(
            denoiser, ConstantMask(), num_steps=num_steps, resample=resample, num_resamples=rounds
        )
        made.runtime = Runtime(1, budget)
        return made

    def forward(resample: Any) -> Callable[[], object]:
        made = purifier(resample, 0.0)
        return torch.no_grad()(lambda: made(x, noise))

    def gradient(resample: Any, budget: float) -> Callable[[], object]:
        made = purifier(resample, budget)

        def run() -> Tensor:
            leaf = x.clone().requires_grad_()
            return torch.autograd.grad(made(leaf, noise).images.sum(), leaf)[0]

        return run

    calls = {name: purifier(name, 0.0).derived()["network_calls"] for name in ("one_hop", "multi_step")}
    told = f"{calls['one_hop']:.0f} network calls in one hop, {calls['multi_step']:.0f} in many"
    print(f"U = {rounds}, {num_steps} steps: {told}", flush=True)
    tasks: dict[str, Callable[[str], Callable[[], object]]] = {
        "forward": forward,
        "gradient, graphs kept": lambda name: gradient(name, KEPT),
        "gradient, recomputed": lambda name: gradient(name, 0.0),
    }
    print("| | seconds, one hop | many | less time | MiB, one hop | many | less memory |")
    print("|---|---|---|---|---|---|---|")
    for task, make in tasks.items():
        seconds = interleaved({name: make(name) for name in calls}, repeats=2, summary=min)
        memory = {}
        for name in calls:
            run = make(name)
            with LiveBytes() as watched:
                run()
            memory[name] = watched.peak / MIB
        cells = [f"{given[name]:.3g}" for given in (seconds, memory) for name in calls]
        time, space = (1 - given["one_hop"] / given["multi_step"] for given in (seconds, memory))
        print(
            f"| {task} | {cells[0]} | {cells[1]} | {100 * time:.0f} % | {cells[2]} | {cells[3]} | {100 * space:.0f} % |"
        )


def quality(num_steps: int, num_test: int) -> None:
    """Prints how well the blanked middle of test digits is filled in."""
    for piece in ("classifier", "diffusion"):
        if not (file := RUNS / f"digits_{piece}" / "weights.safetensors").is_file():
            raise ValueError(
                f"There is no {file}: make it with `python cli.py fit -c configs/train/digits_{piece}.yaml`."
            )
    classifier = load_classifier(str(RUNS / "digits_classifier" / "weights.safetensors")).eval().requires_grad_(False)
    denoiser = load_denoiser(str(RUNS / "digits_diffusion" / "weights.safetensors"))
    data = Digits(batch_size=num_test, num_test=num_test)
    data.setup("test")
    x, y, index = next(iter(data.test_dataloader()))
    noise = NoiseStream(0, index)
    inside = Middle()(x, (8, 8), lambda images, names: {}, noise)
    blanked = torch.where(inside == 1, 0.5, x)
    distance = FrechetDistance(classifier)
    distance.update(x, real=True)

    def told(name: str, calls: float, images: Tensor) -> None:
        images = images.clamp(0, 1)
        with torch.no_grad():
            right = (classifier(images).argmax(1) == y).double()
        error = ((images - x).square() * inside).flatten(1).sum(1).double() / inside.flatten(1).sum(1)
        distance.reset()
        distance.update(images, real=False)
        cells = [f"{each.mean():.4f} +- {1.96 * each.std() / math.sqrt(len(each)):.4f}" for each in (error, right)]
        print(f"| {name} | {calls:.0f} | {cells[0]} | {cells[1]} | {float(distance.compute()):.3f} |")

    print(f"\n{num_test} test digits, the middle blanked; 10 steps from t = 900 to 50 and {num_steps - 10} from there")
    print("| | network calls | squared error inside | share classified right | Frechet distance of features |")
    print("|---|---|---|---|---|")
    told("the digits themselves", 0, x)
    told("blanked", 0, blanked)
    settings: list[tuple[str, Any, int, float]] = [("no resampling", "one_hop", 0, 1.0)]
    settings += [(f"one hop, U = {u}", "one_hop", u, 1.0) for u in (1, 10, 20)]
    settings += [("one hop, U = 20, of 4.25 noising steps each", "one_hop", 20, 4.25)]
    settings += [(f"many steps, U = {u}", "multi_step", u, 1.0) for u in (1, 10, 20)]
    for name, resample, rounds, jump in settings:
        made = HeterogeneousNoise(
            denoiser, Middle(), 900, 50, (10, num_steps - 10), "after", resample, rounds, jump, eta=1.0
        )
        made.runtime = Runtime(64)
        with torch.no_grad():
            told(name, made.derived()["network_calls"], made(blanked, noise).images[0])


def main() -> None:
    cost(20, 10)
    quality(15, 510)


if __name__ == "__main__":
    main()
