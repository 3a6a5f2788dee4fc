"""The Python entry."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lustral
from lustral.attacks import PGD
from lustral.evaluation import Protocol
from lustral.purifiers import Purified
from tests.contracts import images
from tests.toys.smoothing import Smoothing

SHAPE = (1, 4, 4)
X, Y = images(6, SHAPE), torch.arange(6) % 3
FAST = {"attack": PGD(2), "protocol": Protocol(2, 0), "threat": "linf 0.1", "rows": 32, "progress": False}


class Own(nn.Module):
    """A user's network, with dropout and a normalisation, in train mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_five_lines_attack_any_module() -> None:
    model = Own().train()
    result = lustral.evaluate(model, X, Y, purifier=Smoothing(0.05), **FAST)
    assert result.card["n"] == 6
    assert result.images.shape == X.shape
    assert float((result.images - X).abs().max()) <= 0.1 + 1e-6
    assert 0 <= result.robust <= result.clean <= 1
    assert "unaudited" in str(result)
    assert result.status == result.card["status"]
    # What was handed over is as it was.
    assert model.training
    assert model.body[2].training
    assert all(p.requires_grad for p in model.parameters())


def test_the_default_attack_is_the_houses_and_audited() -> None:
    result = lustral.evaluate(Own(), X, Y, threat="linf 0.3", protocol=Protocol(1, 2), rows=32, progress=False)
    assert result.card["attack"]["class"] == "Ensemble"
    assert result.card["audit"]["num_images"] == 2


def test_neither_batch_nor_a_stop_changes_a_bit(tmp_path: Path) -> None:
    whole = lustral.evaluate(Own(), X, Y, purifier=Smoothing(0.05), **FAST)
    run = tmp_path / "run"
    made = lustral.evaluate(Own(), X, Y, purifier=Smoothing(0.05), batch_size=2, folder=run, **FAST)
    assert torch.equal(made.images, whole.images)
    shard = next((run / "records").glob("*.jsonl"))
    shard.write_text("".join(shard.read_text().splitlines(keepends=True)[:3]))  # as if it had been killed
    again = lustral.evaluate(Own(), X, Y, purifier=Smoothing(0.05), folder=run, **FAST)
    assert torch.equal(again.images, whole.images)
    assert again.card["verdicts"] == whole.card["verdicts"]
    assert (run / "card.json").is_file()
    with pytest.raises(ValueError, match="another evaluation"):
        lustral.evaluate(Own(), X, Y, purifier=Smoothing(0.06), folder=run, **FAST)


def test_a_refused_evaluation_leaves_its_folder_and_torch_as_they_were(tmp_path: Path) -> None:
    class Unkeyed(Smoothing):
        def run(self, x: Tensor, *rest: Any) -> Purified:
            return Purified((x + self.std * torch.randn_like(x))[None])

    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="global"):
            lustral.evaluate(Own(), X, Y, purifier=Unkeyed(0.1), folder=tmp_path / "run", **FAST)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert not (tmp_path / "run").exists()


def test_purify_is_keyed_by_seed_and_row() -> None:
    purifier = Smoothing(0.1)
    purified = lustral.purify(X, purifier, seed=1, rows=32)
    assert purified.shape == X.shape
    assert torch.equal(lustral.purify(X[:2], purifier, seed=1, rows=32), purified[:2])
    assert not torch.equal(lustral.purify(X, purifier, seed=2, rows=32), purified)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": X * 255}, "divide grey levels by 255"),
        ({"images": X.double()}, "float32"),
        ({"images": X[0]}, "float32 tensor"),
        ({"images": X * torch.nan}, r"not in \[0, 1\]"),
        ({"labels": Y.float()}, "one integer"),
        ({"labels": Y[:3]}, "one integer"),
        ({"labels": Y + 1}, "knows 3 classes"),
        ({"labels": Y - 1}, "from 0 on"),
        ({"threat": "8/255"}, "threat is '8/255'"),
        ({"threat": "linf 8"}, "8/255"),
        ({"model": nn.Flatten(0)}, r"must return logits \(1, K\)"),
    ],
)
def test_bad_input_is_one_sentence(given: dict, message: str) -> None:
    words = {"model": Own(), "images": X, "labels": Y, **FAST, **given}
    with pytest.raises(ValueError, match=message):
        lustral.evaluate(**words)


def test_a_plain_module_must_say_what_it_takes() -> None:
    with pytest.raises(ValueError, match="num_classes and image_shape"):
        lustral.defend(Own())
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lustral.nothing
