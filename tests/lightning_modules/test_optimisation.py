"""Optimisers and schedules as recipes name them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import nn
from torch.optim import SGD, lr_scheduler

from datamodules import Digits
from lightning_modules import ClassifierTraining, DiffusionTraining
from lustral.networks import UNetDenoiser, WideResNet
from lustral.training import SizedSchedule, WarmupConstant, WarmupCosine

RECIPE = "configs/train/digits_classifier.yaml"


class Rates(Callback):
    """The learning rate of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def _sgd(parameters: Any) -> SGD:
    return SGD(parameters, 0.1)


def _rates(folder: Path, schedule: Any, interval: str = "step", **trainer: Any) -> list[float]:
    options = {"max_epochs": 3, "limit_train_batches": 4, "limit_val_batches": 1, "num_sanity_val_steps": 0} | trainer
    rates, resume = Rates(), options.pop("ckpt_path", None)
    run = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[rates, ModelCheckpoint(folder, save_last=True)],
        default_root_dir=folder,
        **options,
    )
    module = ClassifierTraining(WideResNet(10, 1, 10, 1, 8), None, _sgd, schedule, interval)  # type: ignore[arg-type]
    run.fit(module, datamodule=Digits(batch_size=16), ckpt_path=resume)
    return rates.seen


def _expected(step: int, num_steps: int, warmup: float, cosine: bool) -> float:
    """Of the rate that the optimiser was given."""
    rising = max(1, round(warmup * num_steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / (num_steps - rising))) if cosine else 1.0


@pytest.mark.parametrize(("schedule", "cosine"), [(WarmupCosine, True), (WarmupConstant, False)])
@pytest.mark.parametrize("warmup", [0.0, 0.25, 1.0])
def test_the_schedule_knows_the_length_of_the_training(
    schedule: type[SizedSchedule], cosine: bool, warmup: float, tmp_path: Path
) -> None:
    rates = _rates(tmp_path, lambda optimizer: schedule(optimizer, warmup))  # type: ignore[call-arg]
    assert rates == [0.1 * _expected(step, 12, warmup, cosine) for step in range(12)]


def test_accumulated_gradients_make_fewer_steps(tmp_path: Path) -> None:
    rates = _rates(tmp_path, lambda o: WarmupCosine(o, 0.25), accumulate_grad_batches=2)
    # Two batches a step: six steps, and Lightning asks the callback once each.
    assert rates == [0.1 * _expected(step, 6, 0.25, True) for step in range(6)]


def test_a_training_that_is_resumed_to_be_longer_follows_the_longer_curve(tmp_path: Path) -> None:
    first = _rates(tmp_path, lambda o: WarmupCosine(o, 0.25), max_epochs=2)
    rest = _rates(tmp_path, lambda o: WarmupCosine(o, 0.25), max_epochs=4, ckpt_path=tmp_path / "last.ckpt")
    assert first == [0.1 * _expected(step, 8, 0.25, True) for step in range(8)]
    # The step after a checkpoint takes the rate that lies in it; so it did when the schedule was Lightning's LambdaLR.
    assert rest[1:] == [0.1 * _expected(step, 16, 0.25, True) for step in range(9, 16)]


@pytest.mark.parametrize(
    ("schedule", "interval", "expected"),
    [
        (lambda o: lr_scheduler.StepLR(o, 5), "step", [0.1] * 5 + [0.01] * 5 + [0.001] * 2),
        (lambda o: lr_scheduler.MultiStepLR(o, [1]), "epoch", [0.1] * 4 + [0.01] * 8),
        (lambda o: ReduceLROnPlateau(o, "val/accuracy", patience=0, mode="min"), "epoch", None),
    ],
    ids=["a step", "an epoch", "plateau"],
)
def test_the_schedules_of_torch_work_too(
    schedule: Any, interval: str, expected: list[float] | None, tmp_path: Path
) -> None:
    rates = _rates(tmp_path, schedule, interval)
    if expected is None:  # accuracy rises or stays, where it should fall
        assert (rates[0], rates[-1]) == (0.1, pytest.approx(0.01))
    else:
        assert rates == pytest.approx(expected)


def test_a_plateau_is_looked_for_where_there_is_a_validation(tmp_path: Path) -> None:
    """Stock Lightning ends the run after an epoch without one."""
    _rates(tmp_path, lambda o: ReduceLROnPlateau(o, "val/loss"), "epoch", check_val_every_n_epoch=2, max_epochs=5)


@pytest.mark.parametrize(
    ("schedule", "interval", "told"),
    [
        (lambda o: WarmupCosine(o, math.nan), "step", "model.lr_scheduler: warmup is nan"),
        (WarmupCosine, "epoch", "set model.lr_interval to step"),
        (lambda o: ReduceLROnPlateau(o, "val/loss"), "step", "set model.lr_interval to epoch"),
        (lr_scheduler.ReduceLROnPlateau, "epoch", "take lightning.pytorch.cli.ReduceLROnPlateau"),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1), "step", "model.lr_scheduler: You must define either total_steps"),
    ],
)
def test_schedules_that_cannot_work_are_refused_at_once(schedule: Any, interval: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ClassifierTraining(WideResNet(10, 1, 10, 1, 8), None, _sgd, schedule, interval)  # type: ignore[arg-type]


def test_an_endless_training_has_no_cosine(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"WarmupCosine must know .* set trainer.max_epochs or trainer.max_steps"):
        _rates(tmp_path, WarmupCosine, max_epochs=-1)


def test_a_schedule_that_was_not_told_its_length_says_so() -> None:
    optimizer = SGD([nn.Parameter(torch.zeros(1))], 0.1)
    schedule = WarmupCosine(optimizer)
    optimizer.step()
    with pytest.raises(ValueError, match=r"call begin\(num_steps\) before the first one"):
        schedule.step()


def test_a_learning_rate_in_a_tensor_stays_in_it() -> None:
    rate = torch.tensor(0.5)
    optimizer = SGD([nn.Parameter(torch.zeros(1))], rate)  # type: ignore[arg-type]
    schedule = WarmupCosine(optimizer, 0.5)
    schedule.begin(4)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == 0.25
    optimizer.step()
    schedule.step()
    assert float(rate) == 0.5


def test_the_defaults_are_those_of_the_papers() -> None:
    classifier = ClassifierTraining(WideResNet(10, 1, 10, 1, 8)).optimisation
    denoiser = UNetDenoiser(8, 1, (8, 16), 1, (False, False), norm_groups=4)
    diffusion = DiffusionTraining(denoiser).optimisation
    some = [nn.Parameter(torch.zeros(1))]
    for optimisation, kind, rate, schedule in (
        (classifier, torch.optim.AdamW, 1e-3, WarmupCosine),
        (diffusion, torch.optim.Adam, 2e-4, WarmupConstant),
    ):
        optimizer = optimisation.optimizer(some)
        assert (type(optimizer), optimizer.param_groups[0]["lr"]) == (kind, rate)
        made: Any = optimisation.lr_scheduler(optimizer)
        assert (type(made), made.warmup) == (schedule, 0.05)


# The front door ------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model.optimizer.lr", "-1"], "model.optimizer: Invalid learning rate: -1.0; change its options."),
        (["--model.optimizer.lr", "0"], "model.optimizer.lr is 0.0; it must be positive."),
        (["--model.optimizer.lr", "fast"], "model.optimizer.lr: 'fast' is no float."),
        (["--model.optimizer.lrr", "1"], "model.optimizer: AdamW has no option lrr; did you mean lr?"),
        (["--model.optimizer", "sgd"], "model.optimizer: sgd is no class"),
        (["--model.optimizer", "torch.optim.SDG"], "did you mean torch.optim.SGD?"),
        (["--model.lr_scheduler.warmup", "2"], "model.lr_scheduler: warmup is 2.0; it is a share of all steps"),
        (["--model.lr_scheduler", "torch.optim.lr_scheduler.MultiStepLR"], "MultiStepLR must be given milestones."),
        (["--model.lr_interval", "hour"], "model.lr_interval: hour is not among 'step', 'epoch'."),
        (["--model.loss.label_smoothing", "1.5"], "label_smoothing is 1.5; it must lie in [0, 1)."),
        (["--model.lr", "0.1"], "ClassifierTraining has no option lr"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_settings_get_one_sentence(
    words: list[str], told: str, cli: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("fit", "-c", RECIPE, "--trainer.default_root_dir", tmp_path / "run", *words) == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert told in error
    assert not (tmp_path / "run").exists()


def test_another_optimiser_and_schedule_are_words_of_the_command_line(cli: Callable[..., int], tmp_path: Path) -> None:
    words = ["--trainer.default_root_dir", tmp_path, "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"]
    words += ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    words += ["--model.optimizer", "torch.optim.RMSprop", "--model.optimizer.lr", "0.001"]
    words += ["--model.optimizer.weight_decay", "0", "--model.lr_interval", "epoch"]
    words += ["--model.lr_scheduler", "torch.optim.lr_scheduler.StepLR", "--model.lr_scheduler.step_size", "1"]
    assert cli("fit", "-c", RECIPE, *words) == 0
    model = yaml.safe_load((tmp_path / "config_fit.yaml").read_text())["model"]["init_args"]
    assert model["optimizer"]["class_path"] == "torch.optim.RMSprop"
    assert model["lr_scheduler"]["init_args"]["step_size"] == 1
