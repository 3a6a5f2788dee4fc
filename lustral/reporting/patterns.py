"""What an attack adds to images and what purification takes away, side by side.

After figure 6 of "Adversarial defense based on distribution transfer" (2023).
"""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from lustral.reporting.panels import Caption, magnification, panel_figure

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


def noise_patterns(
    clean: Tensor,
    adversarial: Tensor,
    purified: Tensor,
    titles: Sequence[str],
    alignments: Sequence[float] | None = None,
) -> Figure:
    """The three images of each sample, and their differences, all magnified by the same factor: what was added
    (adversarial minus clean), what was removed (adversarial minus purified; alike if purification undoes the attack),
    and what is left (purified minus clean).

    Args:
        clean, adversarial, purified: (N, C, H, W) in [0, 1] each; purified ones are clipped.
        titles: N titles above the columns.
        alignments: N cosines between what was added and removed, written into the latter.
    """
    purified = purified.clamp(0, 1)
    changes = {
        f"added:\nadversarial\n{MINUS} clean": adversarial - clean,
        f"removed:\nadversarial\n{MINUS} purified": adversarial - purified,
        f"left:\npurified\n{MINUS} clean": purified - clean,
    }
    # One factor for all: the rows are to be compared. What is beyond it, at a few pixels, is clipped.
    factor = magnification(float(max(change.abs().flatten().quantile(0.99) for change in changes.values())))
    rows = {"clean": clean, "attacked": adversarial, "purified": purified}
    rows |= {f"{name}, {TIMES}{factor}": 0.5 + factor * change for name, change in changes.items()}
    captions = {}
    if alignments is not None:
        removed = list(rows)[4]
        captions = {removed: [Caption(f"cos {value:.2f}", value > 0) for value in alignments]}
    return panel_figure(rows, titles, captions)
