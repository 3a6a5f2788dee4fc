"""Purifiers and attacks of plain data, as large as they stand there, before toy diffusion models."""

import inspect
from pathlib import Path
from typing import Any

import torch

from lustral.detectors import GaussianKernel, GroupMMD, Reference, StoredThreshold
from lustral.diffusion.schedules import make_schedule
from lustral.networks import DUNet
from lustral.purifiers import SSNI, Denoise, Purifier
from lustral.recipes import imported
from tests.cli.shrunk import followed
from tests.contracts import VariedDenoiser, images, stored_scores

PIXELS = 16
SHAPE = (3, PIXELS, PIXELS)


def built(value: Any) -> Any:
    """What a part of a choice describes: components by class and options, made without the front door's parser."""
    if isinstance(value, str) and value.startswith("lustral."):
        return imported(value)()
    if isinstance(value, list):
        return [built(each) for each in value]
    if not isinstance(value, dict) or "class_path" not in value:
        return value
    made_by, given = imported(value["class_path"]), value.get("init_args") or {}
    if made_by is StoredThreshold:
        return 0.05
    options: dict[str, Any] = {}
    for name, part in given.items():
        if made_by is GroupMMD and name in ("kernel", "reference"):  # of trained networks: made below
            continue
        if made_by is Denoise and name == "denoiser":
            options[name] = DUNet(PIXELS, 3, (4, 4), (1, 1))
        elif name != "reference" or made_by is not SSNI:  # whose stored scores are made below
            options[name] = _denoiser(part) if name in ("denoiser", "scorer") else built(part)
    if made_by is GroupMMD:
        return GroupMMD(GaussianKernel(50.0), options["estimator"], Reference(images(5, SHAPE), torch.arange(5), {}))
    if "resize_to" in options and options["resize_to"] is not None:
        options["resize_to"] = PIXELS
    if made_by is SSNI:
        scorer = options.get("scorer", options["purifier"].denoiser)
        options["reference"] = stored_scores(scorer, options["statistic"], [6000.0, 6300.0])
    return made_by(**options)


def _denoiser(part: dict[str, Any]) -> VariedDenoiser:
    """On the schedule of the network that a part describes."""
    asked = part["init_args"].get("schedule_type")
    if part["class_path"].rpartition(".")[2].startswith("load_"):  # what a training recipe writes
        recipe = Path("configs/train") / f"{Path(part['init_args']['weights']).parent.name}.yaml"
        part = followed(recipe)["model"]["init_args"]["denoiser"]
    parameters = inspect.signature(imported(part["class_path"])).parameters
    given = {name: parameters[name].default for name in ("schedule_type", "preconditioning")} | part["init_args"]
    own = "edm" if given["preconditioning"] == "consistency" else given["preconditioning"]
    schedule = make_schedule(asked or given["schedule_type"] or own)
    return VariedDenoiser(schedule, (3, PIXELS, PIXELS)).float()


def network_calls(purifier: Purifier) -> float:
    """Of a purification at the full levels."""
    return purifier.derived()["network_calls"]
