"""Every recipe runs through the real front door, shrunk: real files in the very formats, small networks."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.cli.shrunk import training
from tests.datamodules.fixtures import write_cifar10

CONFIGS = Path("configs")
TRAIN = sorted((CONFIGS / "train").glob("*.yaml"))
EVAL = sorted((CONFIGS / "eval").glob("*.yaml"))

SHRUNK_CIFAR = [
    *("--model.classifier.depth", "10", "--model.classifier.width", "1", "--allow_untrained=true"),
    *("--data.num_val", "5"),
]
SHRUNK_UNET = [
    *("--model.purifier.denoiser.base_channels", "8", "--model.purifier.denoiser.multipliers", "[1,2]"),
    *("--model.purifier.denoiser.blocks", "1"),
    *("--model.purifier.t_star", "10", "--model.purifier.num_steps", "2"),
]
FAST = [
    *("--data.num_test", "3", "--model.attack.num_steps", "2", "--model.attack.eot", "2"),
    *("--model.attack.selection_draws", "2", "--model.protocol.verdict_draws", "3"),
    *("--model.protocol.audit_images", "1", "--model.rows", "8"),
]


def _data(recipe: Path, tmp_path: Path) -> list[str]:
    if recipe.stem.startswith("cifar10"):
        root = write_cifar10(tmp_path / "data", n=20, num_test=20)
        subset = tmp_path / "subset.txt"
        subset.write_text("7\n3\n11\n0\n")
        return ["--data.root", str(root), "--data.test_subset", str(subset), "--data.num_workers", "0"]
    return []


def _weights(recipe: Path, files: dict[str, Path]) -> list[str]:
    if not recipe.stem.startswith("digits"):
        return SHRUNK_CIFAR + (SHRUNK_UNET if "diffpure" in recipe.stem else [])
    words = ["--model.classifier.weights", str(files["classifier"])]
    if "diffpure" in recipe.stem:
        words += ["--model.purifier.denoiser.weights", str(files["denoiser"]), "--model.purifier.num_steps", "2"]
    return words


@pytest.mark.parametrize("recipe", TRAIN, ids=lambda path: path.stem)
def test_training_recipes_write_weights_that_rebuild_their_network(
    recipe: Path, cli: Callable[..., int], tmp_path: Path
) -> None:
    from lustral.networks import load_network

    code = cli(
        *("fit", "-c", recipe, "--trainer.default_root_dir", tmp_path / "run", "--trainer.max_epochs", "1"),
        *("--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"),
        *("--trainer.check_val_every_n_epoch", "1", "--trainer.accelerator", "cpu"),
        *training(recipe, tmp_path),
    )
    assert code == 0
    network = load_network(tmp_path / "run" / "weights.safetensors")
    assert sum(parameter.numel() for parameter in network.parameters()) > 0
    assert (tmp_path / "run" / "config_fit.yaml").is_file()


@pytest.mark.parametrize("recipe", EVAL, ids=lambda path: path.stem)
def test_evaluation_recipes_write_a_card(
    recipe: Path, cli: Callable[..., int], tmp_path: Path, digit_weights: dict[str, Path]
) -> None:
    run = tmp_path / recipe.stem
    code = cli(
        *("test", "-c", recipe, "--trainer.default_root_dir", run, "--trainer.accelerator", "cpu"),
        *_data(recipe, tmp_path),
        *_weights(recipe, digit_weights),
        *FAST,
    )
    assert code == 0
    card = json.loads((run / "card.json").read_text())
    assert card["schema"] == 1
    assert card["n"] == 3
    assert {"one_shot", "majority", "expected", "worst"} <= card["verdicts"].keys()
    for verdict in card["verdicts"].values():
        for kind in ("clean", "robust"):
            assert 0 <= verdict[kind]["low"] <= verdict[kind]["value"] <= verdict[kind]["high"] <= 1
    assert card["cost"]["network_calls_per_image"] > 0
    assert card["cost"]["peak_memory_mib"] > 0
    assert len(list((run / "records").glob("*.jsonl"))) == 1
    assert (run / "panels.png").is_file()
    assert cli("report", run, "--output", tmp_path / "report") == 0
    assert (tmp_path / "report" / "report.md").is_file()


@pytest.mark.parametrize("recipe", TRAIN, ids=lambda path: path.stem)
@pytest.mark.parametrize("trainer", ["ddp", "slurm"])
def test_training_recipes_take_a_cluster_as_a_second_layer(
    recipe: Path, trainer: str, cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        cli("fit", "-c", recipe, "-c", CONFIGS / "trainer" / f"{trainer}.yaml", "--print_config")
    assert done.value.code in (None, 0)
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["trainer"]["strategy"] == "ddp"
    assert config["trainer"]["num_nodes"] == (2 if trainer == "slurm" else 1)
    assert config["model"]["class_path"].endswith("Training")


@pytest.mark.parametrize("recipe", [*TRAIN, *EVAL], ids=lambda path: path.stem)
def test_a_recipe_picks_files_and_names_its_command(recipe: Path) -> None:
    assert f"python cli.py {'fit' if recipe.parent.name == 'train' else 'test'} -c {recipe}" in recipe.read_text()
