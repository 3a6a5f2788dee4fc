"""The training of consistency functions: every objective trains, repeats itself, and goes on where it was stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from callbacks import EMA
from datamodules import Digits
from lightning_modules import ConsistencyTraining
from lustral.diffusion import (
    ConsistencyDistillation,
    ConsistencyLoss,
    ConsistencyTrainingLoss,
    EasyConsistencyTuning,
    EDMSchedule,
    ImprovedConsistencyTraining,
    Progress,
)
from lustral.networks import SongUNetDenoiser, load_denoiser, save_network
from lustral.noise import NoiseStream
from tests.contracts import SmoothDenoiser, generator

KINDS = ("ct", "ict", "ect", "cd")


def _network(preconditioning: Any = "consistency", dropout: float = 0.0, **options: Any) -> SongUNetDenoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SongUNetDenoiser(
            8, 1, 8, (1, 1), 1, (), dropout, preconditioning=preconditioning, sigma_max=20.0, **options
        )


def _loss(kind: str) -> ConsistencyLoss:
    losses: dict[str, Any] = {
        "ct": lambda: ConsistencyTrainingLoss(2, 20),
        "ict": lambda: ImprovedConsistencyTraining(10, 40),
        "ect": lambda: EasyConsistencyTuning(4, 2),
        "cd": lambda: ConsistencyDistillation(SmoothDenoiser(EDMSchedule(), (1, 8, 8)).float(), 10, mu=0.5),
    }
    return losses[kind]()


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


def _module(kind: str, **options: Any) -> ConsistencyTraining:
    network = _network(dropout=options.pop("dropout", 0.0))
    return ConsistencyTraining(network, _loss(kind), optimizer=lambda p: torch.optim.RAdam(p, 3e-3), **options)


def _weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("kind", ["ct", "ict"])
def test_a_resumed_training_repeats_the_bits_of_an_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    """The target network is in the checkpoint, and the objective's progress goes on at the step it was stopped at."""

    def run(name: str, resume: Path | None = None, stop: bool = False) -> tuple[Tensor, Path]:
        checkpoint = ModelCheckpoint(tmp_path, filename=name)
        options: dict[str, Any] = {"callbacks": [EMA(0.9), checkpoint], "enable_checkpointing": True}
        trainer = _trainer(tmp_path, max_epochs=2, limit_train_batches=2, **options)
        module = _module(kind, dropout=0.3)
        if stop:  # the length of the whole training is promised to this one too
            module.on_train_epoch_end = lambda: setattr(trainer, "should_stop", True)  # type: ignore[method-assign]
        torch.manual_seed(len(name))
        trainer.fit(module, datamodule=Digits(batch_size=8), ckpt_path=resume)
        return _weights(module), tmp_path / f"{name}.ckpt"

    with torch.random.fork_rng():
        straight, _ = run("straight")
        _, half = run("half", stop=True)
        resumed, _ = run("resumed", half)
    assert torch.equal(resumed, straight)
    content = torch.load(half, weights_only=True)
    assert content["global_step"] == 2
    assert any(name.startswith("target.") for name in content["state_dict"]) == (kind == "ct")


def test_the_target_follows_with_the_decay_of_its_step(tmp_path: Path) -> None:
    module = _module("ct")
    loss, moved, target = module.consistency_loss, [_weights(module.denoiser)], _weights(module.denoiser)
    decays: list[float] = []

    class Watching(EMA):
        def on_train_batch_end(self, *args: Any) -> None:
            moved.append(_weights(module.denoiser))
            decays.append(loss.target_decay(Progress(len(moved) - 2, 4)) or 0.0)
            super().on_train_batch_end(*args)

    held: list[Tensor] = []
    module.on_train_batch_end = lambda *_: held.append(_weights(module.target))  # type: ignore[arg-type, method-assign]
    _trainer(tmp_path, max_steps=4, callbacks=[Watching(0.5)]).fit(module, datamodule=Digits(batch_size=8))
    assert decays == pytest.approx([0.9 ** (2 / (n - 1)) for n in (2, 11, 15, 19)])
    for now, decay, found in zip(moved[1:], decays, held, strict=True):
        target = decay * target + (1 - decay) * now
        torch.testing.assert_close(found, target)


class _Twice(ImprovedConsistencyTraining):
    """Asks the network twice at one point, and keeps the answers."""

    answers: list[tuple[Tensor, Tensor]]

    def __call__(self, denoiser: Any, x_0: Tensor, noise: NoiseStream, *rest: Any) -> Tensor:
        t = torch.full((len(x_0),), 600.0, dtype=torch.float64)
        one = denoiser(x_0, t)
        with torch.no_grad():
            self.answers.append((one.detach(), denoiser(x_0, t)))
        return super().__call__(denoiser, x_0, noise, *rest)


def test_both_calls_of_a_step_drop_the_same_units_and_other_steps_others(tmp_path: Path) -> None:
    loss = _Twice()
    loss.answers = []
    module = ConsistencyTraining(_network(dropout=0.5), loss, optimizer=lambda p: torch.optim.SGD(p, 1e-30))
    nn.init.normal_(module.denoiser.network.head.weight, std=0.3)  # type: ignore[attr-defined]
    with torch.random.fork_rng():
        x = torch.rand(8, 1, 8, 8, generator=generator()).repeat(2, 1, 1, 1)  # two equal batches
        batches = DataLoader(TensorDataset(x, torch.zeros(16), torch.arange(16) % 8), 8)
        _trainer(tmp_path, max_steps=2, limit_val_batches=0).fit(module, batches, batches)
    (one, again), (other, _) = loss.answers
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_lowers_its_loss(kind: str, tmp_path: Path) -> None:
    module = _module(kind)
    data, trained = Digits(batch_size=32), module.consistency_loss
    images = torch.stack([data.train_source.image(i) for i in range(64)])
    noise, early = NoiseStream(3, torch.arange(64)), Progress(2, 12)

    def value() -> float:
        with torch.no_grad():
            return float(trained(module.denoiser.eval(), 2 * images - 1, noise, early).mean())

    before = value()
    module.train()
    _trainer(tmp_path, max_steps=12, limit_val_batches=0).fit(module, datamodule=data)
    assert value() < before


def test_training_starts_from_a_diffusion_model(tmp_path: Path) -> None:
    teacher = _network("edm", dropout=0.1)
    nn.init.normal_(teacher.network.head.weight, std=0.1)
    path = save_network(teacher, tmp_path / "edm.safetensors")
    module = _module("ect", initial=str(path))
    x, t = torch.randn(4, 1, 8, 8), torch.full((4,), 600.0, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(module.denoiser.eval()(x, t), teacher.eval()(x, t), atol=2e-2, rtol=2e-2)
    assert torch.equal(_weights(module.denoiser), _weights(teacher))
    out = save_network(module.exported, tmp_path / "consistency.safetensors")
    assert load_denoiser(str(out)).is_consistency_function

    other = save_network(_network("vp"), tmp_path / "vp.safetensors")
    with pytest.raises(ValueError, match="with preconditioning vp, from which no consistency function can start"):
        _module("ect", initial=str(other))
    scaled = save_network(_network("edm", sigma_data=0.7), tmp_path / "scaled.safetensors")
    with pytest.raises(ValueError, match=r"sigma_data = 0\.7 there and 0\.5 here"):
        _module("ect", initial=str(scaled))


def test_a_diffusion_model_is_no_consistency_function() -> None:
    with pytest.raises(ValueError, match="is no consistency function"):
        ConsistencyTraining(_network("edm"), _loss("ict"))


def test_an_unlimited_training_is_refused(tmp_path: Path) -> None:
    constant: Any = torch.optim.lr_scheduler.ConstantLR
    trainer = _trainer(tmp_path, max_steps=-1, max_epochs=-1)
    with pytest.raises(ValueError, match="ImprovedConsistencyTraining must know how long the training is"):
        trainer.fit(_module("ict", lr_scheduler=constant), datamodule=Digits(batch_size=8))


def test_speed_options_change_neither_names_nor_results(tmp_path: Path) -> None:
    def run(**speed: bool) -> dict[str, Tensor]:
        module = _module("ct", **speed)
        _trainer(tmp_path, max_steps=2).fit(module, datamodule=Digits(batch_size=8))
        assert module.target is not None
        return module.exported.state_dict() | {f"target.{k}": v for k, v in module.target.state_dict().items()}

    with torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
        plain, fast = run(), run(channels_last=True, compile=True)
    assert plain.keys() == fast.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(fast[name], tensor, rtol=1e-3, atol=1e-4)
