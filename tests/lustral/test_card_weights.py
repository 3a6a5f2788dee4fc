"""The card names the weights of a run: an imported file's tag, origin and licence are on it."""

import json
from pathlib import Path
from typing import Any

import torch

from lustral.evaluation import Fingerprint, write_card
from lustral.evaluation.records import Record, RecordFolder
from lustral.networks import WideResNet, save_network


def _run_folder(folder: Path, config: dict[str, Any]) -> Path:
    """One record, and a start with this resolved config."""
    decides = {
        "protocol": {"verdict_draws": 2},
        "attack": {"class": "PGD", "target": "expected"},
        "threat": {},
        "defence": {},
        "seed": 0,
        "rows": 16,
    }
    logits = torch.tensor([[1.0, 0.0, 0.0]] * 2)
    records = RecordFolder(folder / "records", Fingerprint(decides))
    records.append([Record(3, 0, torch.zeros(1, 4, 4), 0.1, False, logits, logits, {})])
    records.close()
    (folder / "cost").mkdir()
    (folder / "provenance").mkdir()
    (folder / "provenance" / "test-1.json").write_text(json.dumps({"python": "3", "config": config}))
    return folder


def test_the_notes_of_each_part_are_on_the_card(tmp_path: Path) -> None:
    notes = {"tag": "IMAGENET1K_V1", "licence": "BSD 3-clause"}
    network = WideResNet(10, 1, channels=1, image_size=8)
    imported = str(save_network(network, tmp_path / "imported.safetensors", notes))
    trained = str(save_network(network, tmp_path / "trained.safetensors"))
    model = {
        "classifier": {"class_path": "lustral.networks.WideResNet", "init_args": {"depth": 10, "weights": imported}},
        "purifier": {"init_args": {"denoiser": {"init_args": {"weights": trained}}, "t_star": 100}},
    }
    card = write_card(_run_folder(tmp_path / "run", {"seed_everything": 0, "model": {"init_args": model}}))
    assert card["provenance"]["weights"] == {
        "model.classifier": {"file": imported, "notes": notes},
        "model.purifier.denoiser": {"file": trained, "notes": {}},
    }


def test_a_file_that_is_gone_or_was_never_named_does_not_cost_the_card(tmp_path: Path) -> None:
    gone = {"classifier": {"weights": str(tmp_path / "gone.safetensors")}, "denoiser": {"weights": None}}
    assert write_card(_run_folder(tmp_path / "run", gone))["provenance"]["weights"] == {}
