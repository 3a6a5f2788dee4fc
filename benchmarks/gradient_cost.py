"""What an exact gradient through T reverse steps costs, in forward passes: `python -m benchmarks.gradient_cost`.

The floor is 2 T (graphs kept) and 3 T (graphs run again); `torch.utils.checkpoint` around each step is the usual way.
"""

from lustral import environment  # noqa: F401, I001

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.timing import interleaved
from lustral.diffusion import EulerMaruyama, unroll
from lustral.networks import UNetDenoiser
from lustral.noise import NoiseStream


def main(num_steps: int = 10, rows: int = 32) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    denoiser = UNetDenoiser(16, 3, (32, 64), 1, (False, True), norm_groups=8, dropout=0.0, preconditioning="vp")
    denoiser = denoiser.eval().requires_grad_(False).to(device)
    solver, noise = EulerMaruyama(), NoiseStream(0, torch.arange(rows, device=device))
    times = denoiser.schedule.grid(100, num_steps)
    x = torch.randn(rows, 3, 16, 16, device=device)

    def step(i: int, x_t: Tensor) -> Tensor:
        return solver.step(denoiser, x_t, times[i], times[i + 1], noise.normal(x.shape[1:], step=i))

    def forward() -> None:
        with torch.no_grad():
            unroll(step, num_steps, x)

    def ours(budget: float) -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(unroll(step, num_steps, leaf, budget=budget).sum(), leaf)[0]

    def checkpointed() -> Tensor:
        leaf = state = x.clone().requires_grad_()
        for i in range(num_steps):
            state = checkpoint(step, i, state, use_reentrant=False)
            assert isinstance(state, Tensor)
        return torch.autograd.grad(state.sum(), leaf)[0]

    assert torch.equal(ours(0.0), ours(torch.inf))
    tasks = {
        "forward": forward,
        "kept": lambda: ours(1e12),
        "run again": lambda: ours(0.0),
        "checkpoint": checkpointed,
    }
    seconds = interleaved(tasks)
    for name in ("kept", "run again", "checkpoint"):
        print(f"{device}: {name:>10}: {seconds[name] / seconds['forward']:.2f} x the forward trajectory")


if __name__ == "__main__":
    main()
