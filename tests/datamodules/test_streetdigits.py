"""House-number scenes: the same everywhere, of held-out shapes, readable, and not trivial."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules import StreetDigits, streetdigits
from datamodules import scenes as painting
from datamodules.scenes import Draws, Shapes
from datamodules.streetdigits import VALIDATION, SceneSource, balanced_labels
from datamodules.subsets import SHIPPED, read_indices


@pytest.fixture(scope="module")
def read() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """3,000 scenes to train on and 300 to test on, with their labels."""
    module = StreetDigits(num_train=3000)
    train = scenes(module.train_source, range(VALIDATION, VALIDATION + 3000))
    return (*train, *scenes(module.test_source, range(300)))


def scenes(source: Any, positions: range) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 32, 32) and labels (n,) at some positions."""
    return torch.stack([source.image(i) for i in positions]), torch.from_numpy(source.labels[list(positions)])


def test_batches_keep_the_convention() -> None:
    module = StreetDigits(batch_size=32, num_val=40, num_train=70, num_test_scenes=50)
    seen: dict[str, list[int]] = {}
    loaders = {"train": module.train_dataloader(), "val": module.val_dataloader(), "test": module.test_dataloader()}
    for stage, loader in loaders.items():
        for image, label, index in loader:
            assert image.dtype == torch.float32
            assert image.shape[1:] == (3, 32, 32)
            assert 0 <= image.min() <= image.max() <= 1
            assert torch.allclose(image * 255, (image * 255).round(), atol=1e-4)  # as a camera stores them
            assert label.dtype == index.dtype == torch.int64
            source = module.test_source if stage == "test" else module.train_source
            assert label.tolist() == source.labels[index].tolist()
            seen[stage] = seen.get(stage, []) + index.tolist()
    assert seen["test"] == list(range(50)) == module.test_indices
    assert seen["val"] == list(range(40))
    assert len(set(seen["train"])) == 64
    assert set(seen["train"]) <= set(range(VALIDATION, VALIDATION + 70))
    assert (module.name, module.num_classes, module.channels, module.image_size) == ("streetdigits", 10, 3, 32)


def test_a_scene_depends_on_its_split_and_position_alone() -> None:
    plain = StreetDigits()
    other = StreetDigits(num_train=7, num_test_scenes=11, num_val=3, num_test=4, batch_size=2, seed=9)
    backwards = {i: other.test_source.image(i) for i in reversed(range(11))}
    for i in range(11):
        assert torch.equal(plain.test_source.image(i), backwards[i])
        assert plain.test_source.labels[i] == other.test_source.labels[i]
    for i in (0, 2, VALIDATION, VALIDATION + 6):
        assert torch.equal(plain.train_source.image(i), other.train_source.image(i))
        assert plain.train_source.labels[i] == other.train_source.labels[i]
    assert not torch.equal(plain.train_source.image(0), plain.test_source.image(0))
    assert not torch.equal(backwards[3], backwards[4])


def test_more_scenes_continue_the_same_ones() -> None:
    few = next(iter(StreetDigits(num_test=5, num_test_scenes=5).test_dataloader()))
    more = next(iter(StreetDigits(num_test=9, num_test_scenes=9).test_dataloader()))
    assert all(torch.equal(a, b[:5]) for a, b in zip(few, more, strict=True))
    assert torch.equal(StreetDigits().test_images([7, 2]), more[0][[7, 2]])


def test_the_pixels_are_these() -> None:
    """A changed rendering needs a new ``RECIPE``: results on the old scenes are not results on the new ones."""
    image = StreetDigits().test_source.image(0).mul(255)
    assert streetdigits.RECIPE == 2
    # By one, a rounding may differ between machines.
    assert (
        np.abs(
            image[:, 16, 4:28:6].numpy() - np.array([[30, 148, 128, 29], [38, 126, 109, 37], [98, 134, 118, 79]])
        ).max()
        <= 1
    )
    assert image.mean().item() == pytest.approx(93.51, abs=0.01)
    assert StreetDigits().test_source.labels[:10].tolist() == [9, 2, 4, 1, 5, 0, 7, 3, 6, 8]


def test_scenes_of_a_part_show_shapes_of_that_part() -> None:
    module = StreetDigits()
    val, train = (set(pool.positions) for pool in module.train_source.pools)  # type: ignore[attr-defined]
    (test,) = (set(pool.positions) for pool in module.test_source.pools)  # type: ignore[attr-defined]
    assert val == set(read_indices(SHIPPED / "digits_val.txt"))
    assert test == set(read_indices(SHIPPED / "digits_test.txt"))
    assert train == set(read_indices(SHIPPED / "digits_train.txt"))
    assert not val & train
    assert not (val | train) & test


def test_each_scene_is_made_of_the_pool_of_its_position() -> None:
    source = SceneSource("train", [(10, Shapes([0, 1, 2])), (5, Shapes([3, 4]))])
    assert [source.shapes(i).positions for i in (0, 9, 10, 14)] == [[0, 1, 2]] * 2 + [[3, 4]] * 2
    module = StreetDigits(num_train=20)
    train, val = module.train_parts
    assert {len(module.train_source.shapes(i).positions) for i in train} == {1157}  # type: ignore[attr-defined]
    assert {len(module.train_source.shapes(i).positions) for i in val} == {130}  # type: ignore[attr-defined]


def test_only_the_pool_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The centre has the class of the label; no digit in the scene comes from elsewhere."""
    drawn: list[tuple[Shapes, int, float]] = []
    original = painting._digit

    def spy(shapes: Shapes, number: int, frame: Any, offset: float) -> np.ndarray:
        drawn.append((shapes, number, offset))
        return original(shapes, number, frame, offset)

    monkeypatch.setattr(painting, "_digit", spy)
    source, stored = StreetDigits().test_source, load_digits().images
    for i in range(30):
        drawn.clear()
        source.image(i)
        (shapes, centre, offset), *neighbours = drawn
        assert shapes.labels[centre] == source.labels[i]
        assert offset == 0
        assert np.array_equal(shapes.stored[centre], stored[shapes.positions[centre]])
        assert all(abs(place) >= 16 for _, _, place in neighbours)
        assert len({place > 0 for _, _, place in neighbours}) == len(neighbours)


def test_every_ten_scenes_have_the_ten_labels() -> None:
    for split in ("train", "test"):
        labels = balanced_labels(split, 995)
        assert labels.shape == (995,)
        assert all(set(block) == set(range(10)) for block in labels[:990].reshape(-1, 10))
        assert len({tuple(block) for block in labels[:990].reshape(-1, 10)}) > 95
    assert not np.array_equal(balanced_labels("train", 100), balanced_labels("test", 100))


def test_a_neighbour_changes_only_the_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    source = StreetDigits().test_source
    monkeypatch.setattr(painting, "NEIGHBOURS", 0.0)
    alone, labels = scenes(source, range(50))
    monkeypatch.setattr(painting, "NEIGHBOURS", 1.0)
    crowded, same = scenes(source, range(50))
    assert torch.equal(labels, same)
    difference = (alone - crowded).abs().mean((0, 1, 2))  # by column
    assert difference[14:18].max() < 0.01
    assert difference[[0, 31]].min() > 0.05


def test_digits_differ_from_the_wall() -> None:
    """Each scene has a contrast that a person can see."""
    images, _ = scenes(StreetDigits().test_source, range(200))
    luminance = torch.einsum("nchw,c->nhw", images, torch.tensor([0.299, 0.587, 0.114])).flatten(1)
    low, high = luminance.quantile(0.1, dim=1), luminance.quantile(0.9, dim=1)
    assert (high - low).min() > 0.08
    assert images.amin() < 0.05
    assert images.amax() > 0.95


def test_draws_are_what_they_say() -> None:
    draws = Draws("test", 3)
    values = np.array([draws.uniform(2, 4) for _ in range(Draws.SCALARS)])
    assert 2 <= values.min() < values.max() < 4
    noise = Draws("test", 3).noise(100, 100)
    assert abs(noise.mean()) < 0.03
    assert noise.std() == pytest.approx(1, abs=0.03)
    assert np.abs(noise).max() <= 2 * 3**0.5
    assert not np.array_equal(Draws("test", 4).noise(5), noise[0, :5])


def test_raw_pixels_are_not_enough(read: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x, y, test_x, test_y = read
    means = torch.stack([x[y == label].mean(0) for label in range(10)]).flatten(1)
    guess = torch.cdist(test_x.flatten(1), means).argmin(1)
    assert (guess == test_y).float().mean() < 0.35


def test_a_small_network_learns_to_read_the_scenes(read: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x, y, test_x, test_y = read
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 10))
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(4):
            for batch in torch.randperm(len(x)).split(50):
                optimizer.zero_grad()
                F.cross_entropy(network(x[batch]), y[batch]).backward()
                optimizer.step()
        network.eval()
        with torch.no_grad():
            accuracy = (network(test_x).argmax(1) == test_y).float().mean()
    assert accuracy > 0.5


def test_fingerprint_knows_the_recipe_and_the_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a fingerprint renders nothing")

    monkeypatch.setattr(streetdigits, "paint", refuse)
    fingerprint = StreetDigits().fingerprint()
    assert StreetDigits(num_train=9, num_test_scenes=70, num_test=3, num_val=5, seed=4).fingerprint() == fingerprint
    positions = read_indices(SHIPPED / "digits_test.txt")
    assert SceneSource("test", [(10, Shapes(positions))]).digest() == fingerprint["content"]
    assert SceneSource("test", [(10, Shapes(positions[:-1]))]).digest() != fingerprint["content"]
    monkeypatch.setattr(streetdigits, "RECIPE", 99)
    changed = StreetDigits().fingerprint()
    assert changed["pixels"] != fingerprint["pixels"]
    assert changed["content"] != fingerprint["content"]


def test_a_subset_keeps_its_order(tmp_path: Path) -> None:
    path = tmp_path / "subset.txt"
    path.write_text("12\n3\n40\n")
    module = StreetDigits(test_subset=str(path), num_test=2)
    image, _, index = next(iter(module.test_dataloader()))
    assert index.tolist() == [12, 3]
    assert torch.equal(image[1], StreetDigits().test_source.image(3))
    with pytest.raises(ValueError, match="such as 12: that part has 12 images"):
        StreetDigits(test_subset=str(path), num_test_scenes=12)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("num_train", 0, "num_train is 0; it must be an integer of at least 1"),
        ("num_test_scenes", 0, "num_test_scenes is 0; it must be an integer of at least 1"),
        ("num_test", 5001, "num_test is 5001, but the test set has 5000 images"),
        ("num_val", 5001, "5000 validation scenes"),
        ("num_val", 0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("seed", -1, "at least 0"),
    ],
)
def test_bad_options_are_refused_at_construction(option: str, value: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreetDigits(**{option: value})


def test_nothing_draws_from_the_global_generators() -> None:
    module = StreetDigits(num_train=64)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        next(iter(loader))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12, of a process with threads
def test_worker_processes_change_nothing() -> None:
    plain = [batch[0] for batch in StreetDigits(num_test=70).test_dataloader()]
    loaded = [batch[0] for batch in StreetDigits(num_test=70, num_workers=1).test_dataloader()]
    assert torch.equal(torch.cat(plain), torch.cat(loaded))
