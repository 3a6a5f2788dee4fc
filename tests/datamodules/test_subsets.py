"""Index files, lists of synsets, and the ones that are shipped."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from datamodules.subsets import SHIPPED, check_within, read_indices, stratified_order
from datamodules.synsets import read_synsets


def test_order_comments_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "subset.txt"
    path.write_text("# mine\n3\n\n1  # an inline one\n2\n")
    assert read_indices(path) == [3, 1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("1\n2\n1\n", "Lines 1 and 3 .* both hold 1"),
        ("1\ntwo\n", "Line 2 .* is 'two'"),
        ("-1\n", "Line 1 .* is '-1'"),
        ("1.5\n", "Line 1 .* is '1.5'"),
    ],
)
def test_bad_index_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "subset.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_indices(path)


def test_binary_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a text file"):
        read_indices(tmp_path / "binary.txt")
    with pytest.raises(FileNotFoundError, match=r"missing: looked for .*none\.txt"):
        read_indices(tmp_path / "none.txt")


def test_a_relative_path_starts_at_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "subset.txt").write_text("5\n")
    monkeypatch.chdir(tmp_path)
    assert read_indices("subset.txt") == [5]


def test_positions_outside_are_named() -> None:
    with pytest.raises(ValueError, match=r"mine\.txt holds 2 position.* such as 9: .* 3 images .*test_subset null\."):
        check_within([0, 9, 12], [0, 1, 2], "mine.txt", "test part of digits")


def test_the_shared_512_are_those_that_papers_draw() -> None:
    expected = np.random.RandomState(0).choice(10000, 512, replace=False)
    assert read_indices(SHIPPED / "cifar10_512.txt") == expected.tolist()


def test_digit_files_are_what_their_header_says() -> None:
    labels = load_digits().target
    for part, first, end in (("train", 0, 1157), ("val", 1157, 1287), ("test", 1287, 1797)):
        order = [first + position for position in stratified_order(labels[first:end])]
        assert read_indices(SHIPPED / f"digits_{part}.txt") == order


def test_every_beginning_of_a_stratified_order_is_balanced() -> None:
    labels = np.repeat([0, 1, 2], [100, 200, 300])
    order = stratified_order(labels)
    assert sorted(order) == list(range(600))
    for n in (6, 60, 333):
        counts = np.bincount(labels[order[:n]], minlength=3)
        assert np.abs(counts - n * np.array([1, 2, 3]) / 6).max() <= 1


@pytest.mark.parametrize(("name", "size"), [("imagenet100_cmc.txt", 100), ("imagenet30.txt", 30)])
def test_shipped_synset_lists(name: str, size: int) -> None:
    synsets = read_synsets(SHIPPED / name)
    assert len(synsets) == size
    assert list(synsets) == sorted(synsets)


@pytest.mark.parametrize(
    ("text", "message"),
    [("tench\n", "Line 1 .* 'tench'"), ("n01440764\nn01440764 tench\n", "Line 2 .* repeats n01440764")],
)
def test_bad_synset_lists_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_synsets(path)
