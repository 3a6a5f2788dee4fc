"""The front door knows no module by name: classes from outside the package are asked like its own."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from torch import Tensor, nn

import cli as front_door
import lightning_modules
from lightning_modules import ClassifierTraining, RobustnessEvaluation, ScoreReference
from lustral.networks import Classifier

UNDEFENDED = Path("configs/eval/digits_undefended.yaml")
REFERENCE = Path("configs/reference/digits_eps.yaml")
TRAINING = Path("configs/train/digits_classifier.yaml")


class Mine(RobustnessEvaluation):
    """Somebody's own evaluation."""


class Scores(ScoreReference):
    """Somebody's own reference."""


def of_a_function(classifier: Classifier) -> ClassifierTraining:
    """A recipe may name a function."""
    return ClassifierTraining(classifier)


class Careful(ClassifierTraining):
    """A training that refuses something of its own."""

    @classmethod
    def refuse(cls, subcommand: str, config: Any) -> None:
        super().refuse(subcommand, config)
        if config.model.init_args.seed == 13:
            raise ValueError("model.seed is 13: choose another.")


class Plain(LightningModule):
    """A module that knows nothing of Lustral."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", self.training_step(batch, batch_idx))

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.layer(batch[0].flatten(1)).argmax(1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def _recipe(of: Path, kind: str, folder: Path, **options: Any) -> Path:
    """A recipe with another class for its model, beside the files that it picks."""
    whole = yaml.safe_load(of.read_text().replace("../", f"{Path('configs').resolve()}/"))
    whole["model"]["class_path"] = f"{__name__}.{kind}"
    whole["model"]["init_args"] = options or whole["model"]["init_args"]
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(whole))
    return path


@pytest.fixture
def small(tmp_path: Path, digit_weights: dict[str, Path]) -> list[object]:
    return [
        *("--trainer.default_root_dir", tmp_path / "run", "--trainer.accelerator", "cpu", "--data.num_test", "3"),
        *("--model.classifier.weights", digit_weights["classifier"], "--model.attack", "configs/attack/pgd20.yaml"),
        *("--model.attack.num_steps", "1", "--model.protocol.audit_images", "0", "--model.rows", "4"),
    ]


def test_an_evaluation_of_ones_own_is_an_evaluation(
    cli: Callable[..., int], tmp_path: Path, small: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = _recipe(UNDEFENDED, "Mine", tmp_path)
    for command, words, told in (
        ("fit", [], "evaluates and trains nothing"),
        ("validate", [], "has one loop"),
        ("test", ["--trainer.limit_test_batches", "1"], "--data.num_test"),
        ("test", ["--seed_everything", "3"], "--model.seed"),
        ("test", ["--ckpt_path", "some.ckpt"], "--model.classifier.weights"),
        ("predict", ["--trainer.fast_dev_run", "true"], "--data.num_test"),
    ):
        assert cli(command, "-c", recipe, *small, *words) == 1
        assert told in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    assert cli("test", "-c", recipe, *small) == 0
    assert json.loads((tmp_path / "run" / "card.json").read_text())["n"] == 3
    assert (
        yaml.safe_load((tmp_path / "run" / "config_test.yaml").read_text())["trainer"]["enable_progress_bar"] is False
    )


def test_a_reference_of_ones_own_is_a_reference(
    cli: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = _recipe(REFERENCE, "Scores", tmp_path)
    for command, words, told in (
        ("fit", [], "Reference scores train nothing"),
        ("test", [], "Reference scores are those of held-out images"),
        ("predict", [], "Reference scores predict nothing"),
        ("validate", ["--trainer.limit_val_batches", "1"], "--data.num_val"),
        ("validate", ["--ckpt_path", "some.ckpt"], "--ckpt_path is for the recipes in configs/train"),
    ):
        assert cli(command, "-c", recipe, "--trainer.default_root_dir", tmp_path / "run", *words) == 1
        assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_nothing_is_built_to_be_refused(
    cli: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def built(*arguments: Any, **options: Any) -> None:
        raise AssertionError("it was built")

    monkeypatch.setattr(front_door.LustralCLI, "instantiate_classes", built)
    assert cli("fit", "-c", UNDEFENDED, "--trainer.default_root_dir", tmp_path) == 1
    assert "evaluates and trains nothing" in capsys.readouterr().err


def test_a_training_refuses_what_it_likes(
    cli: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = _recipe(TRAINING, "Careful", tmp_path)
    assert cli("fit", "-c", recipe, "--trainer.default_root_dir", tmp_path / "run", "--model.seed", "13") == 1
    assert "error: model.seed is 13: choose another." in capsys.readouterr().err


def test_a_function_answers_by_what_it_returns(
    cli: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = _recipe(TRAINING, "of_a_function", tmp_path, classifier="lustral.networks.WideResNet")
    shape = ["--model.classifier.depth", "10", "--model.classifier.width", "1", "--model.classifier.channels", "1"]
    words = ["-c", recipe, "--trainer.default_root_dir", tmp_path, *shape, "--model.classifier.image_size", "8"]
    assert cli("predict", *words) == 1
    assert "The weights of WideResNet are random" in capsys.readouterr().err


def test_a_module_that_knows_nothing_of_lustral_is_taken_for_a_training(
    cli: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "plain.yaml"
    data = Path("configs/data/digits.yaml").resolve()
    recipe.write_text(yaml.safe_dump({"data": str(data), "model": {"class_path": f"{__name__}.Plain"}}))
    words = ["-c", recipe, "--trainer.default_root_dir", tmp_path, "--trainer.accelerator", "cpu"]
    fast = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "0"]
    assert cli("fit", *words, *fast) == 0
    assert cli("test", *words, "--data.num_test", "3") == 0
    assert not (tmp_path / "card.json").exists()
    assert cli("predict", *words, "--trainer.limit_predict_batches", "1") == 1
    assert "--data.num_test" in capsys.readouterr().err


def test_a_diffusion_model_predicts_nothing(
    cli: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stock Lightning asks for a `forward`."""
    words = ["-c", "configs/train/digits_diffusion.yaml", "--trainer.default_root_dir", tmp_path / "run"]
    assert cli("predict", *words) == 1
    assert "A diffusion model has no classes to predict" in capsys.readouterr().err


def test_the_front_door_names_no_class_of_module() -> None:
    names = {
        node.id for node in ast.walk(ast.parse(Path(front_door.__file__).read_text())) if isinstance(node, ast.Name)
    }
    assert "LustralModule" in names
    assert not names & (set(lightning_modules.__all__) - {"LustralModule"})
