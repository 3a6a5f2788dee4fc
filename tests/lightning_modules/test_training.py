"""The training shells: what they optimise, and that a run can be repeated."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks import EMA
from datamodules import Digits
from lightning_modules import ClassifierTraining, DiffusionTraining
from lightning_modules.checks import check_fit
from lustral.diffusion import DiffusionLoss, EDMLoss, HybridLoss, SimpleLoss
from lustral.networks import ADMDenoiser, SongUNetDenoiser, UNetDenoiser, WideResNet
from lustral.noise import NoiseStream
from lustral.training import WarmupCosine


def _denoiser(schedule: str) -> UNetDenoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNetDenoiser(8, 1, (8, 16), 1, (False, False), norm_groups=4, dropout=0.0, preconditioning=schedule)  # type: ignore[arg-type]


def _adam(lr: float) -> Any:
    return lambda parameters: torch.optim.Adam(parameters, lr, fused=True)


def _trainer(folder: Path, steps: int) -> Trainer:
    return Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )


@pytest.mark.parametrize("schedule", ["vp", "linear"])
def test_the_loss_of_predicting_nothing_is_the_variance_of_the_noise(schedule: str) -> None:
    module = DiffusionTraining(_denoiser(schedule))
    with torch.no_grad():
        for parameter in module.denoiser.network.conv_out.parameters():
            parameter.zero_()
    loss = module.loss(torch.rand(512, 1, 8, 8), NoiseStream(0, torch.arange(512)))
    assert loss.shape == (512,)
    assert abs(float(loss.detach().mean()) - 1.0) < 0.03


@pytest.mark.parametrize("schedule", ["vp", "linear"])
def test_times_cover_the_schedule(schedule: str) -> None:
    times = _denoiser(schedule).schedule.times(torch.linspace(1e-9, 1 - 1e-9, 10_001, dtype=torch.float64))
    assert float(times.max()) > 999.9
    if schedule == "linear":
        assert torch.equal(times, times.round())
        assert float(times.min()) == 1
    else:
        assert 0 < float(times.min()) < 0.2


def test_a_loss_does_not_depend_on_the_batch_it_came_in() -> None:
    module = DiffusionTraining(_denoiser("vp"))
    x, index = torch.rand(6, 1, 8, 8), torch.tensor([5, 3, 9, 100, 7, 1])
    whole = module.loss(x, NoiseStream(0, index))
    parts = [module.loss(x[i : i + 2], NoiseStream(0, index[i : i + 2])) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize("kind", ["classifier", "diffusion"])
def test_training_lowers_the_validation_loss_and_can_be_repeated(kind: str, tmp_path: Path) -> None:
    def run(steps: int) -> tuple[float, torch.Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if kind == "classifier":
                module = ClassifierTraining(WideResNet(10, 1, 10, 1, 8), optimizer=_adam(5e-3))
            else:
                module = DiffusionTraining(_denoiser("vp"), optimizer=_adam(5e-3))
        data, trainer = Digits(batch_size=32), _trainer(tmp_path, steps)
        trainer.fit(module, datamodule=data)
        (metrics,) = trainer.validate(module, datamodule=data, verbose=False)
        return metrics["val/loss"], torch.cat([p.detach().flatten() for p in module.parameters()])

    start, _ = run(1)
    end, weights = run(30)
    again, same_weights = run(30)
    assert end < 0.8 * start
    assert end == again
    assert torch.equal(weights, same_weights)


def _dropping() -> UNetDenoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNetDenoiser(8, 1, (8, 16), 1, (False, False), norm_groups=4, dropout=0.3, preconditioning="vp")


def test_a_resumed_training_repeats_the_bits_of_an_uninterrupted_one(tmp_path: Path) -> None:
    """Dropout draws from the global generator, which no checkpoint holds; optimiser, average and schedule do."""

    def run(epochs: int, resume: Path | None = None, disturbed: int = 0) -> tuple[Path, list[torch.Tensor]]:
        folder = tmp_path / ("straight" if epochs == 4 and not resume else "interrupted")
        average = EMA(half_life=2000)
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            limit_train_batches=3,
            limit_val_batches=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[average, ModelCheckpoint(folder, save_last=True)],
            default_root_dir=folder,
        )
        torch.manual_seed(disturbed)
        module = DiffusionTraining(_dropping(), optimizer=_adam(1e-3))
        trainer.fit(module, datamodule=Digits(batch_size=16), ckpt_path=resume)
        return folder / "last.ckpt", [p.detach().clone() for p in module.parameters()]

    with torch.random.fork_rng():
        # The same number of steps is promised to both, so that the learning rate follows one curve.
        _, straight = run(4)
        half, _ = run(2)
        _, resumed = run(4, half, disturbed=12345)
    for ours, theirs in zip(resumed, straight, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("options", [{"channels_last": True}, {"compile": True}], ids=["channels_last", "compile"])
def test_speed_options_change_neither_names_nor_results(options: dict[str, bool], tmp_path: Path) -> None:
    def run(**speed: bool) -> dict[str, torch.Tensor]:
        module = DiffusionTraining(_denoiser("vp"), optimizer=_adam(1e-3), **speed)
        assert (module.denoiser.network._compiled_call_impl is not None) == ("compile" in speed)  # type: ignore[union-attr]
        trainer = _trainer(tmp_path, 3)
        trainer.fit(module, datamodule=Digits(batch_size=16))
        return module.exported.state_dict()

    with torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):  # names and copies, not the compiler
        plain, fast = run(), run(**options)
    assert plain.keys() == fast.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(fast[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("loss", [SimpleLoss(), EDMLoss(sigma_data=0.75), HybridLoss()], ids=type)
def test_every_loss_trains(loss: DiffusionLoss, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        edm = SongUNetDenoiser(8, 1, 8, (1, 2), 1, (4,), dropout=0.0, preconditioning="edm", sigma_data=0.75)
        denoiser = edm if isinstance(loss, EDMLoss) else _denoiser("vp")
        if isinstance(loss, HybridLoss):
            denoiser = ADMDenoiser(8, 1, 32, (1, 1), 1, (4,), None, 2, "conv", preconditioning="cosine")
        module = DiffusionTraining(denoiser, loss, optimizer=_adam(3e-3))
        noise, x = NoiseStream(9, torch.arange(64)), Digits(batch_size=64)
        x.setup("fit")
        images = next(iter(x.val_dataloader()))[0][:64]
        with torch.no_grad():
            start = module.loss(images, noise).mean()
        _trainer(tmp_path, 25).fit(module, datamodule=Digits(batch_size=32))
        with torch.no_grad():
            assert module.loss(images, noise).mean() < 0.9 * start


def test_a_loss_that_cannot_train_the_denoiser_is_refused() -> None:
    with pytest.raises(ValueError, match="HybridLoss trains a learned variance"):
        DiffusionTraining(_denoiser("linear"), HybridLoss())


def test_networks_must_fit_the_data() -> None:
    data = Digits()
    check_fit(data, [("classifier", WideResNet(10, 1, 10, 1, 8))])
    with pytest.raises(ValueError, match="11 classes apart, but Digits has 10"):
        check_fit(data, [("classifier", WideResNet(10, 1, 11, 1, 8))])
    with pytest.raises(ValueError, match="image_size"):
        check_fit(data, [("denoiser", UNetDenoiser(32, 1, (8, 16), 1, (False, False), norm_groups=4))])
    check_fit(None, [("classifier", WideResNet(10, 1, 11, 1, 8))])


@pytest.mark.parametrize("options", [{"lr_interval": "hour"}])
def test_unknown_options_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="step or epoch"):
        ClassifierTraining(WideResNet(10, 1, 10, 1, 8), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"warmup": 1.5}, {"warmup": -1.0}, {"lr": 0.0}, {"lr": -1.0}])
@pytest.mark.parametrize("kind", [DiffusionTraining, ClassifierTraining])
def test_settings_out_of_range_are_refused(kind: type, options: dict[str, float]) -> None:
    network = _denoiser("vp") if kind is DiffusionTraining else WideResNet(10, 1, 10, 1, 8)
    (name, value), *_ = options.items()
    told = {"warmup": f"model.lr_scheduler: warmup is {value}", "lr": r"model.optimizer(: Invalid|.lr is)"}[name]
    with pytest.raises(ValueError, match=told):
        kind(
            network,
            optimizer=_adam(options.get("lr", 0.1)),
            lr_scheduler=lambda optimizer: WarmupCosine(optimizer, options.get("warmup", 0.1)),
        )


def test_a_denoiser_in_half_precision_is_asked_the_same_label() -> None:
    """Index 997 is 996 in bfloat16."""
    denoiser, seen = _denoiser("linear").bfloat16(), []
    denoiser.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    with torch.no_grad():
        denoiser(torch.zeros(1, 1, 8, 8, dtype=torch.bfloat16), torch.tensor(998.0))
    assert seen[0].tolist() == [997.0]


def test_learned_variances_keep_their_digits_under_autocast() -> None:
    denoiser = ADMDenoiser(8, 1, 32, (1, 1), 1, (4,), None, 2, "conv", preconditioning="cosine")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        _, v = denoiser.mean_and_variance(torch.zeros(1, 1, 8, 8), torch.tensor(10.0))
    assert v.dtype == torch.float32
