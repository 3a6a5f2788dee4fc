"""Dropout, the one thing here that draws from the global generator."""

import torch


def seed_dropout(seed: int, step: int, process: int) -> None:
    """Start the global generators of this process from a seed of their own for every training step.

    No checkpoint holds their state, so a resumed training would otherwise drop other units than one that was not
    interrupted; and all processes would drop the same ones.

    Args:
        seed: the training's.
        step: batches trained so far.
        process: rank of this process.
    """
    torch.manual_seed(hash((seed, step, process)))
