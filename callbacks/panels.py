"""Pictures of what happened: clean, adversarial, noised, purified, and the difference magnified."""

from typing import Any

import torch
from lightning.pytorch import Callback

from lustral.evaluation import read_records
from lustral.noise import NoiseStream
from lustral.purifiers import Identity
from lustral.reporting import panel_figure


class Panels(Callback):
    """A sheet of the same first samples in every run, drawn when the card is made, into TensorBoard and the run
    folder (``panels.png``).

    Args:
        num_images: samples on the sheet, the first of the test subset.
    """

    def __init__(self, num_images: int = 8) -> None:
        self.num_images = num_images

    def draw(self, module: Any, datamodule: Any, folder: Any) -> Any:
        """The figure, from the records in ``folder``; None if none of its samples has one yet."""
        first = datamodule.test_indices[: self.num_images]
        records = read_records(folder / "records", first)
        wanted = [i for i in first if i in records]
        if not wanted:
            return None
        clean = datamodule.test_images(wanted)
        adversarial = torch.stack([records[i].image for i in wanted])
        noise = NoiseStream(module.evaluator.seed, torch.tensor(wanted)).fork("panels")
        defence = module.defence.cpu()
        with torch.no_grad():
            purified = defence.purifier(adversarial, noise)
            predicted = defence.classifier(purified.images[0]).argmax(1)
        rows = {"clean": clean, "adversarial": adversarial}
        if "noised" in purified.trace:
            rows["noised"] = purified.trace["noised"].clamp(0, 1)
        if not isinstance(defence.purifier, Identity):
            rows["purified"] = purified.images[0].clamp(0, 1)
        names = datamodule.class_names
        titles = [f"{names[records[i].label]} → {names[int(p)]}" for i, p in zip(wanted, predicted, strict=True)]
        return panel_figure(rows, titles)
