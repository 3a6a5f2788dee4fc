"""Seconds of a purification in units of its bare network calls, CIFAR-10 size: `python -m benchmarks.purifier_cost`.

The bar is 1.10. Calls are counted in rows; SSNI's rows have levels of their own, and its calls are full but for the
last of each step.
"""

from lustral import environment  # noqa: F401, I001

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.timing import interleaved
from lustral.diffusion import EPS, EulerMaruyama
from lustral.networks import UNetDenoiser
from lustral.noise import NoiseStream
from lustral.purifiers import (
    GDMP,
    GNSP,
    SSNI,
    DiffPure,
    LevelRule,
    MSEGuidance,
    Purifier,
    RoundPurifier,
    SSIMGuidance,
    StoredScores,
)
from lustral.rows import Runtime


class Spread(LevelRule):
    """Levels from 0 to t*, evenly over the rows."""

    looks = True

    def __call__(self, score: Tensor, t_star: float, reference: Tensor, noise: NoiseStream) -> Tensor:
        return torch.linspace(0, t_star, len(score), dtype=torch.float64, device=score.device)


class NoReference(StoredScores):
    """Scores that nobody compares with: only the time counts here."""

    def __init__(self) -> None:
        self.file, self.scores, self.made_by = "", torch.tensor([0.0, 1.0], dtype=torch.float64), {}

    def check(self, denoiser: object, statistic: object) -> None:
        """Any denoiser will do."""


def main(rows: int = 4) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = 64 if device.type == "cuda" else rows
    denoiser = UNetDenoiser(preconditioning="vp").to(device)

    def ssni(purifier: RoundPurifier) -> SSNI:
        built = SSNI(purifier, Spread(), NoReference(), EPS(2))
        built.runtime = Runtime(rows)
        return built

    def bases() -> dict[str, RoundPurifier]:
        return {
            "DiffPure": DiffPure(denoiser, EulerMaruyama(), 100, 4),
            "GNSP": GNSP(denoiser, [(30, 2), (50, 2)]),
            "GDMP, MSE": GDMP(denoiser, MSEGuidance(), 36, 2, 2),
            "GDMP, SSIM": GDMP(denoiser, SSIMGuidance(), 36, 2, 2, 1e3),
        }

    purifiers: dict[str, tuple[Purifier, int]] = {name: (purifier, rows) for name, purifier in bases().items()}
    purifiers |= {f"SSNI over {name}": (ssni(purifier), 4 * rows) for name, purifier in bases().items()}
    image, t = torch.rand(rows, 3, 32, 32, device=device), torch.tensor(50.0, dtype=torch.float64)
    calls: list[int] = []
    denoiser.network.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))

    def purify(purifier: Purifier, count: int) -> Callable[[], object]:
        x, noise = torch.rand(count, 3, 32, 32, device=device), NoiseStream(0, torch.arange(count, device=device))
        return lambda: purifier(x, noise)

    with torch.no_grad():
        for name, (purifier, count) in purifiers.items():
            task = purify(purifier, count)
            calls.clear()
            task()
            number = len(calls)
            assert set(calls) == {rows}

            def bare(number: int = number) -> None:
                for _ in range(number):
                    denoiser(image, t)

            seconds = interleaved({"purifier": task, "bare": bare}, repeats=3, summary=min)
            share = seconds["purifier"] / seconds["bare"]
            print(f"{device}: {name:<22} {number:3d} calls of {rows} rows, {share:.3f} x their bare time (bar: 1.10)")


if __name__ == "__main__":
    main()
