"""Training of classifiers: mixup by key, the last layer alone, and options that must change nothing."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from scipy import stats

from datamodules import Digits
from lightning_modules import ClassifierTraining
from lustral.networks import WideResNet, load_network, save_network
from lustral.noise import NoiseStream
from lustral.training import CleanCrossEntropy, mixup_draws
from tests.contracts import ToyClassifier, generator, images, randomise, stream


def _network(**options: float) -> WideResNet:
    network = WideResNet(10, 1, 10, 1, 8, **options)  # type: ignore[arg-type]
    randomise(network, 0.2)
    return network


def _adamw(lr: float) -> Any:
    return lambda parameters: torch.optim.AdamW(parameters, lr, weight_decay=5e-4)


def _sgd(lr: float) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr, 0.9, weight_decay=5e-4, nesterov=True)


def _fit(module: ClassifierTraining, folder: Path, steps: int = 6) -> ClassifierTraining:
    trainer = Trainer(
        max_steps=steps,
        val_check_interval=2,
        limit_val_batches=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=Digits(batch_size=32))
    return module


# Mixup ------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_have_their_distribution(alpha: float) -> None:
    share, partner = mixup_draws(NoiseStream(0, torch.arange(20_000)), alpha)
    assert share.dtype == torch.float64
    assert stats.kstest(share.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.01
    assert torch.equal(partner.sort().values, torch.arange(20_000))
    assert abs(float(torch.corrcoef(torch.stack([share, share[partner]]))[0, 1])) < 0.03


def test_shares_are_keyed_by_sample_and_step_and_partners_stay_in_the_batch() -> None:
    rows = stream(12)
    whole, part = mixup_draws(rows, 0.5)[0], mixup_draws(rows.select(torch.tensor([7, 2, 9])), 0.5)[0]
    assert torch.equal(whole[[7, 2, 9]], part)
    later, partners = mixup_draws(rows.at(iteration=1), 0.5)
    assert not torch.isin(later, whole).any()
    assert not torch.equal(partners, mixup_draws(rows, 0.5)[1])
    assert torch.equal(mixup_draws(rows, 0.5)[1], mixup_draws(rows, 0.5)[1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_mixtures_loss_is_that_of_both_labels_by_share(smoothing: float) -> None:
    """share * CE(own label) + (1 - share) * CE(partner's label), row by row, of the mixed image."""
    toy, x, y, noise = ToyClassifier(), images(6), torch.tensor([0, 1, 2, 1, 0, 2]), stream(6)
    module = ClassifierTraining(toy, CleanCrossEntropy(smoothing, 0.7))
    loss = module.loss(x, y, noise)
    share, partner = mixup_draws(noise, 0.7)
    for row in range(6):
        own, other = float(share[row]), int(partner[row])
        log_p = torch.log_softmax(toy(own * x[row : row + 1] + (1 - own) * x[other : other + 1])[0], 0)
        target = own * F.one_hot(y[row], 3) + (1 - own) * F.one_hot(y[other], 3)
        target = (1 - smoothing) * target + smoothing / 3
        torch.testing.assert_close(loss[row], -(target * log_p).sum(), rtol=1e-5, atol=1e-6)


def test_without_mixup_the_loss_is_that_of_the_clean_images() -> None:
    toy, x, y = ToyClassifier(), images(6), torch.tensor([0, 1, 2, 1, 0, 2])
    loss = ClassifierTraining(toy).loss(x, y, stream(6))
    torch.testing.assert_close(loss, F.cross_entropy(toy(x), y, reduction="none"))


# The last layer alone ------------------------------------------------------------


def test_head_only_training_moves_the_head_and_nothing_else(tmp_path: Path) -> None:
    network = _network(dropout=0.5)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    _fit(ClassifierTraining(network, CleanCrossEntropy(mixup_alpha=0.2), _adamw(0.05), trainable="head"), tmp_path)
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"head.weight", "head.bias"}


def test_training_of_all_layers_moves_statistics_too(tmp_path: Path) -> None:
    network = _network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    _fit(ClassifierTraining(network, optimizer=_adamw(0.05)), tmp_path)
    assert all(not torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


# Options that must change nothing ------------------------------------------------------------


def test_channels_last_changes_the_layout_only(tmp_path: Path) -> None:
    plain, other = _network(), _network()
    # Not Adam, which turns a rounding error of a tiny gradient into a whole step.
    _fit(ClassifierTraining(plain, optimizer=_sgd(0.01)), tmp_path, 2)
    module = _fit(ClassifierTraining(other, optimizer=_sgd(0.01), channels_last=True), tmp_path, 2)
    weight = module.classifier.get_parameter("stages.1.0.conv1.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)
    again = load_network(save_network(other, tmp_path / "weights.safetensors"))
    assert again.get_parameter("stages.1.0.conv1.weight").is_contiguous()


def test_a_compiled_network_keeps_its_names_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = _network().eval(), torch.rand(2, 1, 8, 8, generator=generator())
    names, expected = list(network.state_dict()), network(x)
    calls: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: lambda *args: (calls.append(call), call(*args))[1])
    module = ClassifierTraining(network, compile=True)
    assert torch.equal(module.predict_step((x, x, x), 0), expected.argmax(1))
    assert len(calls) == 1
    assert list(network.state_dict()) == names


def test_dropout_of_a_step_has_a_seed_of_its_own(tmp_path: Path) -> None:
    first, again, other = (
        _fit(
            ClassifierTraining(_network(dropout=0.5), optimizer=_adamw(0.01), seed=seed), tmp_path, 2
        ).classifier.state_dict()
        for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup_alpha": -0.1}, "mixup_alpha is -0.1; it must be positive, or 0"),
        ({"trainable": "body"}, "trainable is 'body'; it may be all or head"),
        ({"mixup_alpha": math.nan}, "mixup_alpha is nan"),
        ({"label_smoothing": 1.0}, r"label_smoothing is 1.0; it must lie in \[0, 1\)"),
    ],
)
def test_impossible_trainings_are_refused(options: dict, message: str) -> None:
    shares = {name: value for name, value in options.items() if name != "trainable"}
    with pytest.raises(ValueError, match=message):
        ClassifierTraining(_network(), CleanCrossEntropy(**shares), trainable=options.get("trainable", "all"))
