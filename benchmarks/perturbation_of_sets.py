"""Are generated images as clean as clean ones? The observation of CMAP (figures 1 and 7) on the digits:
`python -m benchmarks.perturbation_of_sets`.

Sets of clean, generated and adversarial images, and of clean ones with random noise of the same size, each against a
reference of other clean images: norms of the expected perturbation score under the digits' diffusion model, and squared
MMDs with the semantic-aware kernel (features of the digits' classifier) and a Gaussian kernel of pixels (median
bandwidths of the training images). The p-values are of permutation tests; that of the score is of its mean. The test
digits are divided, class by class, into the reference and the clean set, of which the adversarial images are made.

A table, and a picture (`--picture`) with a panel for each generator. Generators whose weights are missing are left out,
and named.
"""

from lustral import environment  # noqa: F401, I001

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from datamodules import Digits
from lustral.attacks import PGD, Cases, Engine
from lustral.defence import Defence
from lustral.detectors import GaussianKernel, Kernel, SemanticKernel, permutation_test
from lustral.diffusion import EPS, Ancestral, ConsistencyGenerator, generated, to_diffusion
from lustral.diffusion.perturbation import perturbation
from lustral.diffusion.sampling import sample
from lustral.networks import Penultimate, load_classifier, load_denoiser, load_generator
from lustral.noise import NoiseStream
from lustral.purifiers import Identity
from lustral.reporting.style import PALETTE, style
from lustral.threat import ThreatModel

RUNS = Path("runs/train")
GENERATORS = {"consistency model": "digits_consistency", "diffusion model": "digits_diffusion", "GAN": "digits_gan"}


class Compared(NamedTuple):
    """A set against the reference.

    Attributes:
        mean, low, high: the mean score of the set with its 95 % interval (normal approximation).
        p: of the difference of the mean scores.
        discrepancies: for each kernel the squared MMD (unbiased), and its p.
    """

    mean: float
    low: float
    high: float
    p: float
    discrepancies: list[tuple[float, float]]


def mean_test(a: Tensor, b: Tensor, seed: int = 0, permutations: int = 2000) -> float:
    """The p-value of a permutation test of the means of ``a`` (n,) and ``b`` (m,): the squared MMD (biased) of the
    linear kernel is the squared difference of the means."""
    pooled = torch.cat((a, b)).double()
    pooled = (pooled - pooled.mean()) / pooled.std()
    noise = NoiseStream(seed, torch.zeros(1, dtype=torch.int64)).fork("means")
    return float(permutation_test(torch.outer(pooled, pooled)[None], len(a), noise, permutations, "biased").p_value)


@torch.no_grad()
def kernel_test(kernel: Kernel, a: Tensor, b: Tensor, seed: int = 0, permutations: int = 2000) -> tuple[float, float]:
    """The squared MMD (unbiased) of images ``a`` (n, C, H, W) and ``b`` (m, C, H, W), and its p-value."""
    pooled = torch.cat((a, b))
    noise = NoiseStream(seed, torch.zeros(1, dtype=torch.int64)).fork("kernel")
    tested = permutation_test(kernel(pooled, pooled)[None], len(a), noise, permutations)
    return float(tested.statistic), float(tested.p_value)


def compared(reference: Tensor, images: Tensor, score: Callable[[Tensor], Tensor], kernels: list[Kernel]) -> Compared:
    """``images`` (n, C, H, W) against ``reference`` (m, C, H, W); ``score`` gives (n,) perturbation scores."""
    own, known = score(images), score(reference)
    half = 1.96 * float(own.std()) / len(own) ** 0.5
    mean = float(own.mean())
    found = [kernel_test(kernel, reference, images) for kernel in kernels]
    return Compared(mean, mean - half, mean + half, mean_test(known, own), found)


def alternating(y: Tensor) -> Tensor:
    """(n,) bool: every second image of each class of the labels ``y`` (n,), so that both halves have equal shares."""
    own = y[:, None] == y
    return own.tril().sum(1) % 2 == 1


def drawn(runs: Path, count: int, seed: int = 0) -> dict[str, Tensor]:
    """(count, 1, 8, 8) images of each generator whose weights are there."""
    noise, found = NoiseStream(seed, torch.arange(count)).fork("samples"), dict[str, Tensor]()
    for name, run in GENERATORS.items():
        file = str(runs / run / "weights.safetensors")
        if not Path(file).is_file():
            print(f"Left out: {name}, for want of {file}: `python cli.py fit -c configs/train/{run}.yaml`.\n")
        elif name == "GAN":
            found[name] = generated(load_generator(file).eval(), noise)
        elif name == "diffusion model":
            found[name] = sample(load_denoiser(file).eval(), noise, Ancestral(), 50)
        else:
            found[name] = generated(ConsistencyGenerator(load_denoiser(file), 20.0), noise)
    return found


def picture(scores: dict[str, Tensor], generators: list[str], others: list[str], path: Path) -> None:
    """The distributions of the score: a panel for each generator, with the same others in all of them."""
    with style():
        figure = Figure(figsize=(6.8, 2.6), layout="constrained")
        panels = figure.subplots(1, max(1, len(generators)), sharey=True, squeeze=False)[0]
        every = torch.cat([values for name, values in scores.items()]).log10()
        edges = np.linspace(float(every.min()), float(every.max()), 36)
        for axes, generator in zip(panels, generators or [""], strict=True):
            shown = [name for name in ("clean", generator, *others) if name in scores]
            for colour, name in zip([PALETTE[k] for k in (1, 2, 0, 3)][: len(shown)], shown, strict=True):
                values = scores[name].log10().numpy()
                axes.hist(values, edges, density=True, histtype="step", color=colour, label=name, linewidth=1.2)
            axes.set_xlabel("log10 of the perturbation score")
            axes.set_title(f"generated: {generator}" if generator else "no generator")
        panels[0].set_ylabel("density")
        handles, labels = panels[0].get_legend_handles_labels()
        labels = ["generated" if label in generators else label for label in labels]
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def main(arguments: list[str] | None = None) -> dict[str, Compared]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=Path, default=RUNS, help="the folder of the trainings")
    parser.add_argument("--images", type=int, default=500, help="at most as many in each set")
    parser.add_argument("--eps", type=float, nargs="+", default=[0.05, 0.15], help="budgets of the attack, linf")
    parser.add_argument("--steps", type=int, default=20, help="of PGD")
    parser.add_argument("--picture", type=Path, default=Path("runs/perturbation_of_sets.png"), help="where it is put")
    given = parser.parse_args(arguments)
    for run in ("digits_classifier", "digits_diffusion"):
        if not (given.runs / run / "weights.safetensors").is_file():
            raise ValueError(f"There is no {given.runs / run}: `python cli.py fit -c configs/train/{run}.yaml` first.")
    data = Digits(batch_size=510)
    data.setup("test")
    x, y, index = next(iter(data.test_dataloader()))
    known = alternating(y)
    count = min(given.images, int(known.sum()), int((~known).sum()))
    reference = x[known][:count]
    clean, labels, number = (part[~known][:count] for part in (x, y, index))

    classifier = load_classifier(str(given.runs / "digits_classifier" / "weights.safetensors")).eval()
    denoiser = load_denoiser(str(given.runs / "digits_diffusion" / "weights.safetensors")).eval().requires_grad_(False)
    classifier.requires_grad_(False)
    train, _ = data.train_images(data.train_parts[0][:500])
    kernels: list[Kernel] = [SemanticKernel(Penultimate(classifier)), GaussianKernel()]
    for kernel in kernels:
        kernel.adapt(train, train)

    noise = NoiseStream(0, number)
    engine = Engine(Defence(classifier, Identity()), 256)
    sets, others = {"clean": clean}, list[str]()
    sets |= drawn(given.runs, count)
    generators = list(sets)[1:]
    for eps in given.eps:
        threat = ThreatModel("linf", eps)
        attacked = PGD(given.steps)(engine, Cases(clean, labels, number), threat, noise).images
        sets[f"adversarial, {eps:g}"] = attacked
        sets[f"random signs, {eps:g}"] = threat.random_boundary_point(clean, noise.fork("signs"))
        others.append(f"adversarial, {eps:g}")

    memory: dict[int, Tensor] = {}

    @torch.no_grad()
    def score(images: Tensor) -> Tensor:
        """Under noise that depends on a set's row, not on its images."""
        if id(images) not in memory:
            stream = NoiseStream(1, torch.arange(len(images))).fork("score")
            memory[id(images)] = perturbation(EPS(20), denoiser, to_diffusion(images), stream)
        return memory[id(images)]

    with torch.no_grad():
        found = {name: compared(reference, images, score, kernels) for name, images in sets.items()}
    print(
        f"{count} images a set, {count} in the reference, whose mean score is {float(score(reference).mean()):.1f}.\n"
    )
    print("| set | score [95 %] | p | MMD^2 semantic, x 1000 | p | MMD^2 Gaussian, x 1000 | p | classified right |")
    print("|---" * 8 + "|")
    for name, row in found.items():
        right = ""
        if name not in generators:
            with torch.no_grad():
                right = f"{100 * float((classifier(sets[name]).argmax(1) == labels).double().mean()):.1f} %"
        cells = [f"{1000 * statistic:.2f} | {p:.4f}" for statistic, p in row.discrepancies]
        print(
            f"| {name} | {row.mean:.1f} [{row.low:.1f}, {row.high:.1f}] | {row.p:.4f} | {' | '.join(cells)} | {right} |"
        )
    picture({name: score(images) for name, images in sets.items()}, generators, others, given.picture)
    print(f"\n{given.picture}")
    return found


if __name__ == "__main__":
    main()
