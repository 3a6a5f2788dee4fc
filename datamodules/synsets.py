"""WordNet synsets: lists of them that name a subset of ImageNet, and the folders named by them."""

import os
import re
from pathlib import Path

from datamodules.subsets import read_lines

SYNSET = re.compile(r"n\d{8}")


def read_synsets(path: str | Path) -> dict[str, str]:
    """The synsets in a list and their names (the synset itself where it has none), sorted by synset.

    A line holds a synset (``n`` and eight digits) and, after a space, a name or none; ``#`` starts a comment.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is empty, a line does not begin with a synset, or a synset is repeated.
    """
    names: dict[str, str] = {}
    for number, line in read_lines(path, "list of synsets"):
        synset, _, name = line.partition(" ")
        if not SYNSET.fullmatch(synset):
            raise ValueError(
                f"Line {number} of {path} is {line!r}: it should be a synset such as n01440764 and a name."
            )
        if synset in names:
            raise ValueError(f"Line {number} of {path} repeats {synset}: remove it.")
        names[synset] = name.strip() or synset
    return dict(sorted(names.items()))


def split_folders(root: str | Path, split: str) -> list[Path]:
    """The folders of a split: ``root/<split>``, or the archive's ``root/<split>.X``, ``.X1``, ``.X2`` ...

    Args:
        split: "train" or "val".

    Raises:
        ValueError: if both layouts exist, since they might contain the same images.
    """
    plain = Path(root) / split
    parts = sorted(path for path in Path(root).glob(f"{split}.X*") if path.is_dir())
    if plain.is_dir() and parts:
        raise ValueError(
            f"{Path(root).absolute()} holds both {split} and {parts[0].name}: keep one of the two layouts."
        )
    return [plain] if plain.is_dir() else parts


def synset_folders(folders: list[Path]) -> dict[str, list[Path]]:
    """The subfolders of ``folders`` that are named by a synset, by synset and sorted by it."""
    found: dict[str, list[Path]] = {}
    for folder in folders:
        with os.scandir(folder) as entries:
            for entry in entries:
                if SYNSET.fullmatch(entry.name) and entry.is_dir():
                    found.setdefault(entry.name, []).append(Path(entry.path))
    return dict(sorted(found.items()))
