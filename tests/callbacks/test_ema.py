"""The average of the weights: what is averaged, what is copied, what is exported."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks import EMA, FiniteLoss, WeightExport
from lustral.networks import WideResNet, load_classifier


class Toy(LightningModule):
    """A trained layer, a frozen one and an integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = nn.Linear(2, 1)
        self.frozen = nn.Linear(2, 1).requires_grad_(False)
        self.frozen.weight.fill_(0.1)  # 0.1 is no binary fraction: averaging it with itself rounds
        self.register_buffer("counter", torch.zeros((), dtype=torch.int64))
        self.history: list[Tensor] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.counter += 1
        return self.trained(batch).square().mean()

    def on_train_batch_end(self, *args: Any) -> None:
        self.history.append(self.trained.weight.detach().clone())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.trained.parameters(), 0.1)


def _fit(module: LightningModule, tmp_path: Path, callbacks: list[Any], batches: Any) -> None:
    Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        default_root_dir=tmp_path,
    ).fit(module, DataLoader(batches, batch_size=None))


def test_trained_weights_are_averaged_and_the_rest_is_copied(tmp_path: Path) -> None:
    """Lightning's own EMA averages frozen weights (they drift) and leaves integer buffers stale."""
    module = Toy()
    frozen = module.frozen.weight.clone()
    _fit(
        module,
        tmp_path,
        [EMA(decay=0.9)],
        [torch.randn(4, 2, generator=torch.Generator().manual_seed(i)) for i in range(30)],
    )
    assert torch.equal(module.frozen.weight, frozen)
    assert int(module.counter) == 30
    # The first update copies the weights (there is no average yet); update n has decay min(0.9, (1 + n) / (10 + n)).
    expected = module.history[0]
    for n, current in enumerate(module.history[1:], 1):
        expected = torch.lerp(expected, current, 1.0 - min(0.9, (1.0 + n) / (10.0 + n)))
    torch.testing.assert_close(module.trained.weight, expected)


def test_a_half_life_counts_images(tmp_path: Path) -> None:
    """EDM's rule: a share 0.5^(images an update / half-life) is kept; the half-life grows with the images seen."""
    module = Toy()
    batches = [torch.randn(4, 2, generator=torch.Generator().manual_seed(i)) for i in range(30)]
    _fit(module, tmp_path, [EMA(half_life=20, ramp=0.5)], batches)
    expected = module.history[0]
    for n, current in enumerate(module.history[1:], 1):
        expected = torch.lerp(expected, current, 1 - 0.5 ** (4 / min(20, 0.5 * 4 * n)))
    torch.testing.assert_close(module.trained.weight, expected)


@pytest.mark.parametrize(
    "wrong", [{}, {"decay": 0.9, "half_life": 10}, {"half_life": 0}, {"half_life": 5, "ramp": 0.0}]
)
def test_an_average_has_a_decay_or_a_half_life(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="half_life"):
        EMA(**wrong)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_outside_its_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="decay"):
        EMA(decay)


def test_the_exported_weights_are_the_averaged_ones(tmp_path: Path) -> None:
    class Training(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.exported = WideResNet(10, 1, 2, 1, 8)

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.exported(batch).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.5)

    module = Training()
    images = [torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    _fit(module, tmp_path, [EMA(0.99), WeightExport()], images)
    rebuilt = load_classifier(str(tmp_path / "weights.safetensors"))
    for (name, ours), (_, theirs) in zip(rebuilt.named_parameters(), module.exported.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_loss_that_is_no_number_names_its_batch(tmp_path: Path) -> None:
    batches = [torch.ones(4, 2)] * 3 + [torch.full((4, 2), torch.nan)] + [torch.ones(4, 2)] * 3
    with pytest.raises(ValueError, match="batch 3 of epoch 0"):
        _fit(Toy(), tmp_path, [FiniteLoss()], batches)


def test_weights_in_half_precision_are_not_averaged(tmp_path: Path) -> None:
    """1 - 0.9999 is 0 there: the average would be the random start."""
    with pytest.raises(ValueError, match="to bf16-mixed, which keeps"):
        _fit(Toy().bfloat16(), tmp_path, [EMA(0.9999)], [torch.ones(4, 2, dtype=torch.bfloat16)] * 2)
