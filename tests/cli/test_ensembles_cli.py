"""An ensemble with a surrogate and with an objective in an objective, through the front door."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lustral.evaluation import read_records

pytestmark = pytest.mark.usefixtures("brief_check")


def _part(class_path: str, **options: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": options}


def _pgd(**options: Any) -> dict[str, Any]:
    return _part("lustral.attacks.PGD", num_steps=1, eot=2, selection_draws=2, **options)


@pytest.fixture
def recipe(tmp_path: Path, digit_weights: dict[str, Path]) -> Path:
    """DiffPure on the digits, attacked by three members; data and threat are the shipped files."""
    configs = Path("configs").resolve()
    denoiser = _part("lustral.networks.load_denoiser", weights=str(digit_weights["denoiser"]))
    purifiers = [
        _part("lustral.purifiers.DiffPure", denoiser=denoiser, solver="lustral.diffusion.EulerMaruyama", num_steps=n)
        for n in (2, 1)
    ]
    deviation = _part("lustral.attacks.Deviation", objective="lustral.attacks.MeanLogitMargin", weight=2.0)
    members = [_pgd(), _pgd(objective=deviation), _pgd(surrogate=purifiers[1])]
    model = _part(
        "lightning_modules.RobustnessEvaluation",
        classifier=_part("lustral.networks.load_classifier", weights=str(digit_weights["classifier"])),
        purifier=purifiers[0],
        attack=_part("lustral.attacks.Ensemble", attacks=members, selection_draws=2),
        threat=str(configs / "threat" / "digits_linf.yaml"),
        protocol={"verdict_draws": 2, "audit_images": 1},
        rows=4,
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"data": str(configs / "data" / "digits.yaml"), "model": model}))
    return path


def test_an_ensemble_runs_reports_and_goes_on(recipe: Path, cli: Callable[..., int], tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("test", "-c", recipe, "--trainer.default_root_dir", run, "--trainer.accelerator", "cpu")
    assert cli(*words, "--data.num_test", "1") == 0
    first = {index: record.to_json() for index, record in read_records(run / "records").items()}
    assert cli(*words, "--data.num_test", "3") == 0
    records = read_records(run / "records")
    assert len(records) == 3
    assert {index: records[index].to_json() for index in first} == first
    card = json.loads((run / "card.json").read_text())
    members = card["audit"]["members"]
    assert [row["attack"] for row in members] == [
        "PGD exact CrossEntropy",
        "PGD exact Deviation(MeanLogitMargin, 2.0)",
        "PGD exact CrossEntropy on DiffPure",
    ]
    assert sum(row["wins"] for row in members) == 3
    assert card["attack"]["differentiates"] == ["defence", "the surrogate DiffPure"]
    assert card["attack"]["attacks"][2]["surrogate"]["denoiser"]["weights_sha256"]
    assert cli("report", run, "--output", tmp_path / "report") == 0
    assert "Ensemble" in (tmp_path / "report" / "report.md").read_text()
