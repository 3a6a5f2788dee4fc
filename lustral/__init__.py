"""The science of Lustral in plain PyTorch: noise, diffusion, purifiers, attacks and honest verdicts."""
