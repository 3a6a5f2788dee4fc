"""Seeds for dropout, the only part of a training step that draws from the global generator."""

import torch


def seed_dropout(seed: int, step: int, process: int) -> None:
    """Seed the global generators of this process for one training step.

    Checkpoints do not hold the generators' state, so a resumed training would otherwise drop other units than one that
    was not interrupted; and all processes would drop the same units.

    Args:
        seed: the seed of the training.
        step: number of batches trained so far.
        process: rank of this process.
    """
    torch.manual_seed(hash((seed, step, process)))
