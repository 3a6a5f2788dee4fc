"""Seconds of CMAP in units of its bare network passes, on the digits' generator: `python -m benchmarks.cmap_cost`.

The bar is 1.10. The weights are random: only the time counts here. Each step is a forward and a backward pass to the
latents, and the images at the end a forward pass.
"""

from lustral import environment  # noqa: F401, I001

import torch

from benchmarks.timing import interleaved
from lustral.diffusion import ConsistencyGenerator
from lustral.diffusion.inner import inner_gradient
from lustral.networks import SongUNetDenoiser
from lustral.noise import NoiseStream
from lustral.purifiers import CMAP
from lustral.rows import Runtime

ROWS, LATENTS, STEPS = 64, 4, 5


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    network = SongUNetDenoiser(
        8, 1, 16, (1, 2), 1, (4,), preconditioning="consistency", sigma_data=0.74, sigma_max=20.0
    )
    generator = ConsistencyGenerator(network)
    purifier = CMAP(generator, LATENTS, STEPS, 0.5, latent_weight=8e-3)
    purifier.runtime = Runtime(ROWS)
    x, noise, z = torch.rand(ROWS, 1, 8, 8), NoiseStream(0, torch.arange(ROWS)), 20.0 * torch.randn(ROWS, 1, 8, 8)

    def bare() -> None:
        for _ in range(STEPS * LATENTS):
            inner_gradient(lambda z: generator(z).flatten(1).sum(1), z)
        for _ in range(LATENTS):
            generator(z)

    seconds = interleaved({"CMAP": lambda: purifier(x, noise), "bare": bare})
    share = seconds["CMAP"] / seconds["bare"]
    print(f"CMAP, {STEPS} steps of {LATENTS} latents, calls of {ROWS}: {share:.3f} x their bare time (bar: 1.10)")


if __name__ == "__main__":
    main()
