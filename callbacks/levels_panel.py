"""A panel of images purified at several noise levels, which shows the best level for each image.

After figure 1 of Sun et al., "Sample-specific noise injection for diffusion-based adversarial purification", ICML 2025.
"""

import copy
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lustral.diffusion.schedules import MAX_TIME
from lustral.evaluation import Defence
from lustral.noise import NoiseStream
from lustral.purifiers import Purifier, Round, RoundPurifier
from lustral.reporting import Caption, panel_figure


def levels_panel(
    defence: Defence,
    images: Tensor,
    labels: Sequence[int],
    class_names: Sequence[str],
    noise: NoiseStream,
    factors: Sequence[float],
) -> Figure | None:
    """The adversarial images, and each of them noised and purified at multiples of the recipe's t*, with the predicted
    class: blue if it is right, vermilion if not. The noise is the same at every level.

    For a purifier with sample-specific levels, a last row is purified at these, which are written above the classes.
    Returns None for purifiers without levels.

    Args:
        defence: the defence.
        images: (B, C, H, W) in [0, 1], the adversarial images.
        labels: (B,) their true classes.
        class_names: of the data set.
        noise: B rows.
        factors: multiples of t*; those beyond t = 1000 are left out.
    """
    own = defence.purifier
    base = next((part for part in own.modules() if isinstance(part, RoundPurifier)), None)
    if base is None:
        return None
    rows, captions = {"adversarial": images}, {}
    for factor in factors:
        purifier = at_level(base, factor)
        if purifier is not None:
            name = f"t* = {float(purifier.grids[0][0]):.0f}"
            rows[f"noised\n{name}"], rows[f"purified\n{name}"], found = _purified(defence, purifier, images, noise)
            captions[f"purified\n{name}"] = _captions(found, labels, class_names)
    if {"noised", "levels"} <= set(own.offers):
        with torch.no_grad():
            levels = own(images, noise, wants=["levels"]).trace["levels"][:, 0]
        rows["noised\nown t"], rows["purified\nown t"], found = _purified(defence, own, images, noise)
        before = [f"t = {level:.0f}\n" for level in levels.tolist()]
        captions["purified\nown t"] = _captions(found, labels, class_names, before)
    return panel_figure(rows, [class_names[label] for label in labels], captions)


def at_level(purifier: RoundPurifier, factor: float) -> RoundPurifier | None:
    """The purifier with every round's t* times ``factor``, in steps of the same length; None beyond t = 1000."""
    other = copy.copy(purifier)  # the denoiser is shared
    rounds = tuple(Round(round(r.t_star * factor), max(1, int(r.num_steps * factor))) for r in purifier.rounds)
    if min(r.t_star for r in rounds) < 1 or max(r.t_star for r in rounds) > MAX_TIME:
        return None
    other.rounds = rounds
    other.grids = [other.grid(r) for r in rounds]
    return other


def _purified(
    defence: Defence, purifier: Purifier, images: Tensor, noise: NoiseStream
) -> tuple[Tensor, Tensor, list[int]]:
    """The noised images, the purified ones, and their classes."""
    with torch.no_grad():
        purified = purifier(images, noise, wants=["noised"])
        found = defence.classifier(purified.images[0]).argmax(1)
    return purified.trace["noised"], purified.images[0], found.tolist()


def _captions(
    found: Sequence[int], labels: Sequence[int], class_names: Sequence[str], before: Sequence[str] | None = None
) -> list[Caption]:
    words = before or [""] * len(found)
    return [
        Caption(f"{word}{class_names[one]}", one == label)
        for word, one, label in zip(words, found, labels, strict=True)
    ]
