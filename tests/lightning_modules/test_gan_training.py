"""The training of a GAN: both networks move, latents are keyed, and it goes on where it was stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from callbacks import EMA, SampleGrid
from datamodules import Digits
from lightning_modules import GANTraining
from lustral.diffusion import DDIM
from lustral.networks import GANDiscriminator, GANGenerator
from lustral.noise import NoiseStream


def _module(**options: Any) -> GANTraining:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GANTraining(GANGenerator(8, 1, 5, [4, 4]), GANDiscriminator(8, 1, [4, 4]), **options)


def _trainer(folder: Path, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **{"enable_checkpointing": False, "limit_val_batches": 1, **options},
    )


def _weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_a_resumed_training_repeats_the_bits_of_an_uninterrupted_one(tmp_path: Path) -> None:
    def run(name: str, resume: Path | None = None, stop: bool = False) -> tuple[Tensor, Path]:
        checkpoint = ModelCheckpoint(tmp_path, filename=name)
        options: dict[str, Any] = {"callbacks": [EMA(0.9), checkpoint], "enable_checkpointing": True}
        trainer, module = _trainer(tmp_path, max_epochs=2, limit_train_batches=2, **options), _module()
        if stop:
            module.on_train_epoch_end = lambda: setattr(trainer, "should_stop", True)  # type: ignore[method-assign]
        torch.manual_seed(len(name))
        trainer.fit(module, datamodule=Digits(batch_size=8), ckpt_path=resume)
        return _weights(module), tmp_path / f"{name}.ckpt"

    with torch.random.fork_rng():
        straight, _ = run("straight")
        _, half = run("half", stop=True)
        resumed, _ = run("resumed", half)
    assert torch.equal(resumed, straight)
    before = _module()
    content = torch.load(half, weights_only=True)["state_dict"]
    for name, start in before.named_parameters():  # both networks have moved
        assert not torch.equal(content[name], start) or start.numel() == 1, name


def test_a_step_descends_both_losses_and_the_penalty(tmp_path: Path) -> None:
    """One step of plain gradient descent, against the losses written out."""
    module = _module(penalty=3.0, optimizer=lambda p: torch.optim.SGD(p, 0.1), seed=4)
    start = {name: values.detach().clone() for name, values in module.named_parameters()}
    batches: list[Any] = []
    module.on_train_batch_start = lambda batch, _: batches.append(batch)  # type: ignore[method-assign]
    with torch.random.fork_rng():
        _trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, datamodule=Digits(batch_size=8))
    moved = {name: values.detach().clone() for name, values in module.named_parameters()}
    module.load_state_dict(start)
    ((x, _, index),) = batches
    z = NoiseStream(4, index).fork("train", "latents").normal((5,))
    d, drawn = module.discriminator, module.generator(z)
    at = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(d(at).sum(), at, create_graph=True)
    told = (torch.log1p(torch.exp(-d(x))) + torch.log1p(torch.exp(d(drawn.detach())))).mean()
    told = told + 1.5 * slope.square().flatten(1).sum(1).mean()
    fooled = torch.log1p(torch.exp(-d(drawn))).mean()
    for part, loss in (("discriminator", told), ("generator", fooled)):
        names = [name for name in start if name.startswith(part)]
        own = dict(module.named_parameters())
        for name, gradient in zip(names, torch.autograd.grad(loss, [own[n] for n in names]), strict=True):
            torch.testing.assert_close(moved[name], start[name] - 0.1 * gradient, rtol=1e-4, atol=1e-6)


def test_samples_are_drawn_without_a_solver(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, max_epochs=1, limit_train_batches=1, callbacks=[EMA(0.5), SampleGrid(num_images=4)])
    trainer.fit(_module(), datamodule=Digits(batch_size=8))
    assert (tmp_path / "samples.png").is_file()
    with pytest.raises(ValueError, match="given the solver DDIM, but a generator draws in one network call"):
        _trainer(tmp_path, max_steps=1, callbacks=[SampleGrid(DDIM())]).fit(_module(), datamodule=Digits(batch_size=8))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="penalty is -1; the factor of R1 cannot be negative"):
        _module(penalty=-1)
    with pytest.raises(ValueError, match=r"images are of shape \(1, 8, 8\), the discriminator's of \(3, 8, 8\)"):
        GANTraining(GANGenerator(), GANDiscriminator(channels=3))
    with pytest.raises(ValueError, match="The generator takes images of shape"):
        _trainer(tmp_path, max_steps=1).fit(_module(), datamodule=Digits(batch_size=8, image_size=16))
