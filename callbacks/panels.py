"""Pictures of what happened: clean, adversarial, noised, purified, and the difference magnified; and noise levels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.levels_panel import levels_panel
from lustral.evaluation import Defence, read_records
from lustral.noise import NoiseStream
from lustral.purifiers import Identity
from lustral.reporting import attention_panel, level_histogram, levels_of, load_runs, panel_figure


class Panels(Callback):
    """Sheets of the same first samples in every run, drawn when the card is made, into TensorBoard and the run folder:
    ``panels.png``; ``levels.png``, the samples purified at several noise levels; ``attention.png``, of a purifier that
    chooses pixels, what it chose; and ``level_histogram.png``, the levels that a sample-specific purifier gave all
    images.

    Args:
        num_images: samples on a sheet, the first of the test subset; of images that are judged in groups, the first of
            the first groups, which are purified whole.
        levels: the noise levels of ``levels.png``, as multiples of the purifier's t*; none of them: no such sheet.
            There is none either where images are judged in groups.
    """

    def __init__(self, num_images: int = 8, levels: Sequence[float] = (0.25, 0.5, 1.0, 2.0)) -> None:
        self.num_images, self.levels = num_images, tuple(levels)

    def draw(self, module: Any, datamodule: Any, folder: Path, device: torch.device) -> dict[str, Figure]:
        """The figures by file stem, from the records and the card in ``folder``; those that have anything to show.
        Images are purified on ``device``."""
        figures = {}
        (run,) = load_runs([folder])
        levels = levels_of(run)
        if levels is not None:
            figures["level_histogram"] = level_histogram({run.name: levels})
        groups = module.dealing.groups[: -(-self.num_images // module.dealing.size)]
        keys = [key for group in groups for key in group]
        records = read_records(folder / "records", keys)
        samples = [records[key] for key in keys if key in records]
        wanted = [each.index for each in samples]
        if not wanted:
            return figures
        noise = NoiseStream(module.evaluator.seed, torch.tensor(wanted, device=device)).fork("panels")
        defence, names = module.defence.to(device), datamodule.class_names
        labels = [each.label for each in samples]
        clean = datamodule.test_images(wanted).to(device)
        adversarial = torch.stack([each.image for each in samples]).to(device)
        figures["panels"] = _panel(defence, clean, adversarial, labels, names, noise, self.num_images)
        if defence.group_size == 1:  # images that are purified together could not be shown one by one
            given = (labels, names, noise)
            levels_sheet = levels_panel(defence, adversarial, *given, self.levels) if self.levels else None
            sheets = {"attention": attention_panel(defence, clean, adversarial, *given), "levels": levels_sheet}
            figures |= {stem: sheet for stem, sheet in sheets.items() if sheet is not None}
        return figures


def _panel(
    defence: Defence,
    clean: Tensor,
    adversarial: Tensor,
    labels: Sequence[int],
    names: Sequence[str],
    noise: NoiseStream,
    shown: int,
) -> Figure:
    """The first ``shown`` of the images; all of them are purified together."""
    with torch.no_grad():
        wants = {"noised"} & set(defence.purifier.offers)
        purified = defence.purifier(adversarial, noise, wants=wants)
        predicted = defence.classifier(purified.images[0]).argmax(1)
    rows = {"clean": clean, "adversarial": adversarial}
    if "noised" in purified.trace:
        rows["noised"] = purified.trace["noised"].clamp(0, 1)
    if not isinstance(defence.purifier, Identity):
        rows["purified"] = purified.images[0].clamp(0, 1)
    rows = {name: images[:shown] for name, images in rows.items()}
    titles = [f"{names[label]} → {names[int(p)]}" for label, p in zip(labels[:shown], predicted[:shown], strict=True)]
    return panel_figure(rows, titles)
