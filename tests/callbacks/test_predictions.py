"""`cli.py predict`: one row an image, of classifiers and of defences."""

import csv
from collections.abc import Callable
from pathlib import Path


def test_predictions_of_a_defence_are_written(
    cli: Callable[..., int], tmp_path: Path, digit_weights: dict[str, Path]
) -> None:
    code = cli(
        *("predict", "-c", "configs/eval/digits_diffpure.yaml", "--trainer.accelerator", "cpu", "--data.num_test", "7"),
        *("--trainer.default_root_dir", tmp_path, "--data.batch_size", "3", "--model.purifier.num_steps", "2"),
        *("--model.classifier.weights", digit_weights["classifier"], "--model.rows", "4"),
        *("--model.purifier.denoiser.weights", digit_weights["denoiser"]),
    )
    assert code == 0
    rows = list(csv.DictReader((tmp_path / "predictions-rank0.csv").read_text().splitlines()))
    assert len({row["index"] for row in rows}) == len(rows) == 7
    assert {int(row["prediction"]) for row in rows} <= set(range(10))
