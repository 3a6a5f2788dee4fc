"""The digits: fixed split, fixed noise, and what every data module owes (their data are always there)."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from sklearn.datasets import load_digits

from datamodules import Digits
from datamodules.digits import dequantise


def test_batches_keep_the_convention() -> None:
    module = Digits(batch_size=64)
    indices = []
    for image, label, index in module.test_dataloader():
        assert image.dtype == torch.float32
        assert image.shape[1:] == (1, 8, 8)
        assert 0 <= image.min() <= image.max() <= 1
        assert label.dtype == index.dtype == torch.int64
        assert label.tolist() == load_digits().target[index].tolist()
        indices += index.tolist()
    assert indices == module.test_indices == module.test_set_indices
    assert (module.name, module.num_classes, module.channels, module.image_size) == ("digits", 10, 1, 8)


def test_the_split_is_disjoint_and_complete() -> None:
    module = Digits()
    train, val = module.train_parts
    test = module.test_indices
    assert (len(train), len(val), len(test)) == (1157, 130, 510)
    assert sorted(train + val + test) == list(range(1797))


def test_the_parts_are_whole_blocks_of_writers_one_after_the_other() -> None:
    """Who wrote a digit is not recorded, but each hand begins with 0 1 2 ... 9, three times."""
    labels = load_digits().target
    train, val = Digits().train_parts
    parts = [sorted(part) for part in (train, val, Digits().test_indices)]
    for part in parts:
        assert part == list(range(part[0], part[-1] + 1))
        assert labels[part[0] : part[0] + 30].tolist() == list(range(10)) * 3
    assert [part[0] for part in parts] == [0, 1157, 1287]


def test_the_split_is_no_easier_than_new_hands_are() -> None:
    """The nearest training image: 99.2 % right on a split that mixes neighbours of one hand, 95.9 % here."""
    images, labels = load_digits(return_X_y=True)
    train, test = Digits().train_parts[0], Digits().test_indices
    distances = (images[test] ** 2).sum(1)[:, None] - 2 * images[test] @ images[train].T + (images[train] ** 2).sum(1)
    right = labels[train][distances.argmin(1)] == labels[test]
    assert right.mean() < 0.97


def test_each_beginning_of_the_test_part_is_balanced() -> None:
    labels = load_digits().target
    for n, least in ((510, 47), (200, 18), (50, 4)):
        assert np.bincount(labels[Digits(num_test=n).test_indices]).min() >= least


def test_a_smaller_validation_part_does_not_change_training() -> None:
    assert Digits(num_val=10).train_parts[0] == Digits().train_parts[0]
    assert Digits(num_val=10).train_parts[1] == Digits().train_parts[1][:10]


def test_dequantisation_is_fixed_by_position_alone() -> None:
    stored = load_digits().images.astype(np.uint8)
    images = dequantise(stored)
    assert np.array_equal(dequantise(stored[:5]), images[:5])
    assert not np.array_equal(dequantise(stored[[7, 7]])[0], dequantise(stored[[7, 7]])[1])
    # The very numbers, which no machine and no version may change.
    assert images[0, 0, 2:5].tolist() == [0.3327334523200989, 0.8407324552536011, 0.5646985769271851]


def test_dequantisation_is_uniform_around_the_stored_pixel() -> None:
    stored = load_digits().images
    noise = (dequantise(stored.astype(np.uint8)) - stored / 16)[(stored > 0) & (stored < 16)]
    assert np.abs(noise).max() <= 1 / 32 + 1e-7
    assert abs(noise.mean()) < 3e-4
    assert noise.std() == pytest.approx(1 / 16 / 12**0.5, rel=0.02)


def test_size_and_channels_are_views_of_the_same_image() -> None:
    image, _, index = next(iter(Digits(image_size=16, channels=3).test_dataloader()))
    small, _, same = next(iter(Digits().test_dataloader()))
    assert image.shape[1:] == (3, 16, 16)
    assert torch.equal(index, same)
    assert torch.equal(image[:, 0], image[:, 2])
    assert 0 <= image.min() <= image.max() <= 1
    assert torch.allclose(image.mean((1, 2, 3)), small.mean((1, 2, 3)), atol=0.02)


def test_a_subset_keeps_the_positions_of_the_full_set(tmp_path: Path) -> None:
    chosen = Digits().test_indices[10:14][::-1]
    path = tmp_path / "subset.txt"
    path.write_text("\n".join(map(str, chosen)))
    module = Digits(test_subset=str(path), num_test=3)
    _, _, index = next(iter(module.test_dataloader()))
    assert index.tolist() == module.test_indices == chosen[:3]
    assert module.test_set_indices == chosen


def test_a_subset_with_training_images_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "subset.txt"
    path.write_text(str(Digits().train_parts[0][0]))
    with pytest.raises(ValueError, match="not in the test part of digits"):
        Digits(test_subset=str(path))


def test_options_can_be_chosen_on_validation_images_and_no_test_image(tmp_path: Path) -> None:
    module = Digits(test_on="validation", num_test=64)
    image, _, index = next(iter(module.test_dataloader()))
    assert index.tolist() == module.test_indices == Digits().train_parts[1][:64]
    assert not set(module.test_set_indices) & set(Digits().test_indices)
    assert torch.equal(image, next(iter(Digits().val_dataloader()))[0])
    assert module.fingerprint() != Digits().fingerprint()
    with pytest.raises(ValueError, match="num_test is 131, but the validation set has 130 images"):
        _ = Digits(test_on="validation", num_test=131).test_indices
    path = tmp_path / "subset.txt"
    path.write_text(str(Digits().test_indices[0]))
    with pytest.raises(ValueError, match="not in the validation part of digits"):
        Digits(test_on="validation", test_subset=str(path))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("num_test", 511, "num_test is 511, but the test set has 510 images"),
        ("num_test", 0, "num_test is 0; it must be an integer of at least 1"),
        ("num_val", 131, "130 validation images"),
        ("num_val", 0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("num_workers", -1, "at least 0"),
        ("seed", -1, "at least 0"),
        ("channels", 2, "channels is 2"),
        ("image_size", 0, "image_size is 0"),
        ("test_on", "train", "it may be test or validation"),
    ],
)
def test_bad_options_are_refused_at_construction(option: str, value: int | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Digits(**{option: value})


def test_a_missing_subset_is_refused_at_construction() -> None:
    with pytest.raises(FileNotFoundError, match="looked for"):
        Digits(test_subset="no/such/file.txt")


def test_fingerprint_knows_the_pixels_and_nothing_else() -> None:
    fingerprint = Digits().fingerprint()
    assert Digits(batch_size=7, num_test=3, num_val=5, seed=4).fingerprint() == fingerprint
    assert Digits(channels=3).fingerprint() != fingerprint
    assert Digits(image_size=16).fingerprint() != fingerprint


def test_no_loader_draws_from_the_global_generators() -> None:
    module = Digits()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        next(iter(loader))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_training_batches_are_shuffled_and_whole() -> None:
    loader = Digits(batch_size=100).train_dataloader()
    batches = [index for _, _, index in loader]
    assert [len(batch) for batch in batches] == [100] * 11
    assert torch.cat(batches).tolist() != sorted(torch.cat(batches).tolist())
    assert len(next(iter(Digits(batch_size=5000).train_dataloader()))[0]) == 1157


@pytest.mark.parametrize("num_test", [2, 10])
def test_three_processes_share_a_test_without_repeating(num_test: int) -> None:
    seen: list[int] = []
    for rank in range(3):
        module = Digits(batch_size=2, num_test=num_test)
        module.trainer = SimpleNamespace(global_rank=rank, world_size=3, lightning_module=None)  # type: ignore[assignment]
        seen += [i for _, _, index in module.test_dataloader() for i in index.tolist()]
    assert sorted(seen) == sorted(Digits(num_test=num_test).test_indices)


class _Seen(LightningModule):
    """Notes the indices of each stage and trains nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.epochs: list[list[int]] = []
        self.validated: list[int] = []

    def on_train_epoch_start(self) -> None:
        self.epochs.append([])

    def training_step(self, batch: Any, batch_index: int) -> torch.Tensor:
        self.epochs[-1] += batch[2].tolist()
        return self.weight.sum()

    def validation_step(self, batch: Any, batch_index: int) -> None:
        self.validated += batch[2].tolist()

    def predict_step(self, batch: Any, batch_index: int) -> list[int]:
        return batch[2].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*isinstance.*treespec, LeafSpec")  # lightning, not ours
def test_lightning_reshuffles_each_epoch_and_predicts_in_order(tmp_path: Path) -> None:
    module, seen = Digits(batch_size=200, num_test=250), _Seen()
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "default_root_dir": tmp_path,
        "accelerator": "cpu",
    }
    Trainer(max_epochs=2, num_sanity_val_steps=0, check_val_every_n_epoch=2, **quiet).fit(seen, module)
    assert len(seen.epochs) == 2
    assert seen.epochs[0] != seen.epochs[1]
    assert seen.validated == module.train_parts[1]
    predicted = Trainer(**quiet).predict(seen, module)
    assert [i for batch in predicted or [] for i in batch] == module.test_indices


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12, of a process with threads
def test_worker_processes_change_nothing() -> None:
    plain = [batch[0] for batch in Digits(num_test=70).test_dataloader()]
    loaded = [batch[0] for batch in Digits(num_test=70, num_workers=1).test_dataloader()]
    assert torch.equal(torch.cat(plain), torch.cat(loaded))
