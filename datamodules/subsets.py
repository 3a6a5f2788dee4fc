"""Index files: lists of positions in a data set's full split, and the order from which the shipped ones are made.

An index file holds one integer per line; ``#`` starts a comment. The order of the lines is the order of the
samples, so "the first N" of a subset are always the same images.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

SHIPPED = Path(__file__).resolve().parents[1] / "configs" / "subsets"
"""The folder of the index files and synset lists that come with the project."""


def read_lines(path: str | Path, what: str) -> list[tuple[int, str]]:
    """The (line number, text) of each line that holds more than a comment.

    Args:
        path: a text file; a relative path starts at the working directory.
        what: what the file is, for the messages.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not text, or has only comments.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"The {what} {path} is missing: looked for {path.absolute()}; the shipped ones are in {SHIPPED}."
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"The {what} {path} is not a text file.") from error
    lines = [(number, line.partition("#")[0].strip()) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise ValueError(f"The {what} {path} is empty: it needs one entry a line.")
    return lines


def read_indices(path: str | Path) -> list[int]:
    """The positions in an index file, in the order of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is empty, a line is not an integer of at least 0, or a position is repeated.
    """
    indices: dict[int, int] = {}  # position -> the line that gave it
    for number, line in read_lines(path, "index file"):
        if not (line.isascii() and line.isdigit()):
            raise ValueError(f"Line {number} of {path} is {line!r}: an index file holds one integer >= 0 a line.")
        index = int(line)
        if index in indices:
            raise ValueError(f"Lines {indices[index]} and {number} of {path} both hold {index}: remove one.")
        indices[index] = number
    return list(indices)


def check_within(indices: Sequence[int], part: Sequence[int], path: str | Path, name: str) -> None:
    """Refuse positions outside ``part``, the positions of the part called ``name``.

    Raises:
        ValueError: if there are any; the message names ``path``, the file that they are from.
    """
    allowed = set(part)
    outside = [index for index in indices if index not in allowed]
    if outside:
        raise ValueError(
            f"{path} holds {len(outside)} position(s) that are not in the {name}, such as "
            f"{outside[0]}: that part has {len(part)} images at positions {min(part)} to {max(part)}. Choose another "
            "index file with --data.test_subset, or all images with --data.test_subset null."
        )


def stratified_order(labels: np.ndarray, seed: int = 0) -> list[int]:
    """All positions of ``labels`` in a fixed random order, in which the first N have the classes in proportion.

    ``RandomState(seed)`` permutes the positions; the k-th of the n members of a class is then placed at the
    fraction (k + 1/2) / n of the order. NumPy guarantees the output of ``RandomState``, so the order never changes.

    Args:
        labels: (N,) integers.
        seed: of the permutation.
    """
    labels = np.asarray(labels)
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    places = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels[shuffled] == label)
        places[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(places, kind="stable")].tolist()
