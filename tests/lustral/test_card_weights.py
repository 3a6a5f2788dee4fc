"""The card names the weights of a run: an imported file's tag, origin and licence are on it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lustral.evaluation import Fingerprint, write_card
from lustral.evaluation.records import Record, RecordFolder
from lustral.networks import WideResNet, save_network


def _run_folder(folder: Path, config: dict[str, Any]) -> Path:
    """One record, and a start with this resolved config; one of another evaluation, which was refused here."""
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
    own = {"fingerprint": Fingerprint(decides).sha256, "python": "3", "config": config}
    (folder / "provenance" / "test-1.json").write_text(json.dumps(own))
    (folder / "provenance" / "test-2.json").write_text(json.dumps({"fingerprint": "of another", "config": {}}))
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


def test_files_that_lustral_did_not_write_are_on_the_card_by_their_hash(tmp_path: Path) -> None:
    """A class of one's own reads its weights from whatever it likes."""
    torch.save({"weight": torch.zeros(3)}, pickled := tmp_path / "own.pt")
    save_file({"weight": torch.zeros(3)}, silent := tmp_path / "own.safetensors")
    model = {"classifier": {"weights": str(pickled)}, "purifier": {"weights": str(silent)}}
    found = write_card(_run_folder(tmp_path / "run", model))["provenance"]["weights"]
    assert found == {
        part: {"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for part, path in (("classifier", pickled), ("purifier", silent))
    }


def test_the_provenance_on_the_card_is_that_of_its_records(tmp_path: Path) -> None:
    provenance = write_card(_run_folder(tmp_path / "run", {}))["provenance"]
    assert provenance["python"] == "3"
    assert len(provenance["starts"]) == 1


def test_weights_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    network = WideResNet(10, 1, channels=1, image_size=8)
    (tmp_path / "other").touch()
    for _ in range(2):  # where there is none yet, and over another
        path = save_network(network, tmp_path / "weights.safetensors")
        assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
