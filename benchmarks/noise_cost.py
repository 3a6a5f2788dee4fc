"""What keyed noise costs beside a network call of CIFAR-10 size: `python -m benchmarks.noise_cost`.

The bar is 3 % of one call of the 35.7 M parameter U-Net of Ho et al.
"""

from lustral import environment  # noqa: F401, I001

import torch

from benchmarks.timing import interleaved
from lustral.networks import UNetDenoiser
from lustral.noise import NoiseStream


def main(rows: int = 8) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = 64 if device.type == "cuda" else rows
    denoiser = UNetDenoiser(preconditioning="vp").eval().requires_grad_(False).to(device)
    x = torch.rand(rows, 3, 32, 32, device=device)
    noise = NoiseStream(0, torch.arange(rows, device=device))
    t = torch.tensor(100.0, dtype=torch.float64)
    with torch.no_grad():
        seconds = interleaved({"noise": lambda: noise.normal((3, 32, 32)), "call": lambda: denoiser(x, t)})
    share = seconds["noise"] / seconds["call"]
    print(f"{device}: {rows} rows of 3x32x32 noise cost {100 * share:.2f} % of one network call (bar: 3 %)")


if __name__ == "__main__":
    main()
