"""Detection of groups: level and power of two-sample tests, and how well a group statistic tells groups apart."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lustral.detectors import GroupDetector, GroupMMD, TwoSampleTest, calibrated, run_trials
from lustral.evaluation.intervals import wilson
from lustral.evaluation.roc import auroc, detected_share
from lustral.noise import NoiseStream

LEVEL = 0.05
RATES = (0.01, 0.05)


def shares(n: int) -> list[int]:
    """How many of n images of a group are adversarial in its mixtures: 1, a tenth, a quarter, a half, all."""
    return sorted({1, max(1, n // 10), max(1, n // 4), n // 2, n})


@torch.no_grad()
def group_section(
    detector: GroupDetector,
    views: Mapping[str, Tensor],
    noises: Mapping[str, NoiseStream],
    sizes: Sequence[int],
    trials: int,
    seed: int,
    tests: Sequence[TwoSampleTest] = ("permutation", "wild_bootstrap"),
) -> dict[str, Any]:
    """What a card says of one detector of groups, as plain data by group size.

    "level" and "power" are shares of rejections at 5 % by each test, of groups without and with adversarial images
    against clean images of the same pool (none beside its own source); "random" the power against random noise;
    "mixed" the power of the first test by the number of adversarial images. "statistic" says how well the statistic
    against the reference tells adversarial groups from clean ones, and "threshold" what a threshold calibrated for 5 %
    on clean groups of one half of the images does on groups of the other half. Groups of one half share images: their
    intervals are of these images, and do not say how a threshold varies with the images that calibrate it.

    Args:
        detector: the detector.
        views: "clean", "adversarial" and "random" images, (N, C, H, W) each, in the same order.
        noises: the noise of each view, N rows.
        sizes: n.
        trials: tests, and groups, for each n.
        seed: of the trials.
        tests: the two-sample tests, where the detector has a kernel.
    """
    embedded = {name: detector.embed(x, noises[name]) for name, x in views.items()}
    found: dict[str, Any] = {}
    for n in sizes:
        entry = _statistics(detector, embedded, n, trials, seed)
        if isinstance(detector, GroupMMD):
            entry |= _tests(detector, embedded, n, trials, seed, tests)
        found[str(n)] = entry
    return found


def _tests(
    detector: GroupMMD,
    embedded: Mapping[str, dict[str, Tensor]],
    n: int,
    trials: int,
    seed: int,
    tests: Sequence[TwoSampleTest],
) -> dict[str, Any]:
    def pool(other: str) -> Tensor:
        both = {name: torch.cat((rows, embedded[other][name])) for name, rows in embedded["clean"].items()}
        return detector.kernel.gram(both, both)

    def rejected(k: Tensor, count: int, test: TwoSampleTest) -> dict[str, float]:
        p_value = run_trials(k, n, count, trials, seed, test, detector.estimator).p_value
        return asdict(wilson(int((p_value <= LEVEL).sum()), trials))

    adversarial, random = pool("adversarial"), pool("random")
    return {
        "level": {test: rejected(adversarial, 0, test) for test in tests},
        "power": {test: rejected(adversarial, n, test) for test in tests},
        "random": {test: rejected(random, n, test) for test in tests},
        "mixed": {str(count): rejected(adversarial, count, tests[0]) for count in shares(n)},
    }


def _statistics(
    detector: GroupDetector, embedded: Mapping[str, dict[str, Tensor]], n: int, trials: int, seed: int
) -> dict[str, Any]:
    """Statistics of random groups against the reference, the same images clean, adversarial and with noise. The first
    half of the trials draws from one half of the images, the second from the other."""
    size = len(next(iter(embedded["clean"].values())))
    device = next(iter(embedded["clean"].values())).device
    noise = NoiseStream(seed, torch.arange(trials, device=device)).fork("groups", str(n))
    half = trials // 2
    drawn = noise.uniform((size,), dtype=torch.float64)
    order = NoiseStream(seed, torch.arange(size, device=device)).fork("halves").uniform((), dtype=torch.float64)
    first = order.argsort().argsort() < size // 2
    early = torch.arange(trials, device=device)[:, None] < half
    drawn = drawn.masked_fill(early != first, torch.inf).argsort(-1)[:, :n]
    values = {
        view: torch.stack([detector.of_group({k: v[rows] for k, v in parts.items()}) for rows in drawn]).cpu()
        for view, parts in embedded.items()
    }
    clean = values["clean"].numpy()
    threshold = calibrated(values["clean"][:half], LEVEL, detector, n)
    fires = {view: threshold.fires(found, detector, n) for view, found in values.items()}
    return {
        "clean_mean": float(np.mean(clean)),
        "clean_std": float(np.std(clean, ddof=1)),
        "statistic": {view: told_apart(clean, values[view].numpy()) for view in ("adversarial", "random")},
        "threshold": {
            **asdict(threshold),
            "false_alarms": asdict(wilson(int(fires["clean"][half:].sum()), trials - half)),
            "detected": asdict(wilson(int(fires["adversarial"][half:].sum()), trials - half)),
        },
    }


def told_apart(clean: np.ndarray, suspect: np.ndarray) -> dict[str, Any]:
    """AUROC and detection rates at 1 and 5 % false alarms, as plain data with 95 % intervals."""
    rates = {f"detected_at_{100 * rate:.0f}": asdict(detected_share(clean, suspect, rate)) for rate in RATES}
    return {"auroc": asdict(auroc(clean, suspect)), **rates}
