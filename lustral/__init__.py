"""The science of Lustral in plain PyTorch: noise, diffusion, purifiers, attacks and honest verdicts."""

from lustral import environment  # before torch and torchvision are used, whoever imports the first piece

__all__ = ["environment"]
