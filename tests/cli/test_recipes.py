"""Every recipe runs through the real front door, shrunk: real files in the very formats, small networks."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lustral.detectors import StoredReference, read_threshold
from lustral.purifiers import Purifier
from lustral.tables import Choice, fits, read_tables
from lustral.tensor_files import read_tensors
from tests.cli.evaluations import ATTACKED, EVAL, FAST, FAST_ATTACK, evaluate, fastest, num_judged
from tests.cli.full_size import built
from tests.cli.parsed import resolved
from tests.cli.shrunk import Shrinker, as_words, attack, classes, followed, purifier_of, training, whole

CONFIGS = Path("configs")
TRAIN = sorted((CONFIGS / "train").glob("*.yaml"))
CORRUPTED = [path for path in EVAL if path.stem.endswith("_corruptions")]
QUALITY = [path for path in EVAL if path.stem.endswith("_quality")]
CALIBRATION = sorted((CONFIGS / "calibration").glob("*.yaml"))
REFERENCE = sorted((CONFIGS / "reference").glob("*.yaml"))
AUTOATTACK = [  # those of surrogates run in the rows of tables
    path for path in sorted((CONFIGS / "attack").glob("*autoattack*.yaml")) if not path.stem.startswith("surrogate")
]
TABLES = read_tables(CONFIGS / "tables")
PURIFIER = re.compile(r"(?:purifier:|--model\.purifier) (?:configs/|\.\./)(purifier/\S+)")
SCALES = ("eps", "feature_bandwidth", "pixel_bandwidth")
KERNEL = "model.detector.kernel"
DETECTION = [path for path in EVAL if path.stem.endswith("_detection")]
AUDITED = [CONFIGS / "eval" / f"{name}.yaml" for name in ("digits_ssni_n_diffpure", "cifar10_undefended")]


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
    weights = tmp_path / "run" / "weights.safetensors"
    if recipe.stem.endswith("_mmd"):  # a kernel, whose frozen features are not in its file
        assert sorted(read_tensors(weights)) == [f"scales.{name}" for name in SCALES]
        assert StoredReference(str(tmp_path / "run" / "reference.safetensors")).made_by["part"] == "validation"
    else:
        network = load_network(weights)
        assert sum(parameter.numel() for parameter in network.parameters()) > 0
    assert (tmp_path / "run" / "config_fit.yaml").is_file()


def test_there_are_few_evaluation_recipes() -> None:
    """Everything else is a choice by group."""
    assert len(EVAL) <= 36  # five kinds of evaluation


@pytest.mark.parametrize(
    "recipe",
    [path for path in ATTACKED if path not in AUDITED],
    ids=lambda path: path.stem,
)
def test_evaluation_recipes_write_a_card(
    recipe: Path, cli: Callable[..., int], tmp_path: Path, shrinker: Shrinker, brief_check: None
) -> None:
    """A base runs with the purifier that its first line names."""
    choice = purifier_of(recipe)
    evaluate(cli, "test", tmp_path, *choice.words(), *fastest(shrinker, choice, tmp_path / "attack"))
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["schema"] == 1
    assert card["n"] == num_judged(choice)
    assert {"one_shot", "majority", "expected", "worst"} <= card["verdicts"].keys()
    for verdict in card["verdicts"].values():
        for kind in ("clean", "robust"):
            assert 0 <= verdict[kind]["low"] <= verdict[kind]["value"] <= verdict[kind]["high"] <= 1
    assert card["cost"]["network_calls_per_image"] > 0
    assert card["cost"]["peak_memory_mib"] > 0
    assert len(list((tmp_path / "records").glob("*.jsonl"))) == 1
    assert (tmp_path / "panels.png").is_file()


@pytest.mark.usefixtures("brief_check")
@pytest.mark.parametrize("recipe", CORRUPTED, ids=lambda path: path.stem)
def test_corruption_recipes_write_a_card_that_can_be_reported(
    recipe: Path, cli: Callable[..., int], tmp_path: Path, shrinker: Shrinker
) -> None:
    choice, run = purifier_of(recipe), tmp_path / recipe.stem
    part = "data" if "cifar10c" in recipe.stem else "model.corruptions"
    few = [f"--{part}.types", "[fog,contrast]", f"--{part}.severities", "[2,5]", "--data.num_test", "2"]
    few += ["--model.protocol.verdict_draws", "2", "--model.rows", "2"]
    evaluate(cli, "test", run, *choice.words(), *shrinker.evaluation(choice), *few)
    card = json.loads((run / "card.json").read_text())
    assert (card["kind"], card["n"], card["failed_samples"]) == ("corruptions", 2, 0)
    for side in ("bare", "defended"):
        assert list(card["accuracy"]["expected"][side]["cells"]) == ["fog", "contrast"]
        assert 0 <= card["accuracy"]["expected"][side]["mean"]["value"] <= 1
    assert (run / "corruptions.png").is_file()
    assert cli("report", run) == 0


QUALITY_SMALL = ["--model.draws", "1", "--model.rows", "4", "--model.attack.num_steps", "1"]


@pytest.mark.parametrize("recipe", QUALITY, ids=lambda path: path.stem)
def test_quality_recipes_write_a_card_and_pictures(
    recipe: Path, cli: Callable[..., int], tmp_path: Path, shrinker: Shrinker
) -> None:
    """A run that is started again with more images keeps what it has."""
    choice = Choice(recipe)
    small = [*choice.words(), *shrinker.evaluation(choice), *QUALITY_SMALL]
    for number in (2, 3) if recipe.stem.startswith("digits") else (2,):
        evaluate(cli, "test", tmp_path, *small, "--data.num_test", number)
        card = json.loads((tmp_path / "card.json").read_text())
        assert (card["kind"], card["n"], card["failed_samples"]) == ("quality", number, 0)
        assert card["quality"]["adversarial"]["distance"]["value"] > 0
    lines = [len(path.read_text().splitlines()) for path in (tmp_path / "records").glob("*.jsonl")]
    assert sorted(lines) == ([1, 2] if recipe.stem.startswith("digits") else [2])
    for stem in ("joint_distribution", "noise_patterns", "trajectories"):
        assert (tmp_path / f"{stem}.png").is_file()
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.usefixtures("brief_check")
def test_quality_is_measured_on_the_images_of_a_finished_run(
    cli: Callable[..., int], tmp_path: Path, shrinker: Shrinker, capsys: pytest.CaptureFixture[str]
) -> None:
    attacked, recipe = Choice(CONFIGS / "eval" / "digits_undefended.yaml"), CONFIGS / "eval" / "digits_quality.yaml"
    evaluate(cli, "test", tmp_path / "run", *attacked.words(), *fastest(shrinker, attacked, tmp_path / "attack"))
    words = ["-c", recipe, *shrinker.evaluation(Choice(recipe)), "--model.draws", "1", "--model.rows", "2"]
    found = ["--model.attack", "null", "--model.threat", "null", "--model.adversarial_from", tmp_path / "run"]
    evaluate(cli, "test", tmp_path / "quality", *words, *found, "--data.num_test", "1")
    record = next((tmp_path / "run" / "records").glob("*.jsonl")).read_text()
    image = json.loads(record)["image"]
    assert json.loads(next((tmp_path / "quality" / "records").glob("*.jsonl")).read_text())["image"] == image
    capsys.readouterr()
    for change, complaint in (
        (["--data.num_test", "2"], "has no record of 1 of 2 images"),
        (["--data.num_test", "1", "--data.test_on", "validation"], "attacked images of other data"),
        (["--data.num_test", "1", *found[:2]], "give attack and threat, or adversarial_from"),
    ):
        rest = found if "null" not in change else change[2:]
        code = cli("test", *words, *rest, *change, "--trainer.default_root_dir", tmp_path / "refused")
        assert code == 1
        assert complaint in capsys.readouterr().err


@pytest.mark.usefixtures("brief_check")
def test_detectors_are_judged_reported_and_gone_on_with(
    cli: Callable[..., int], tmp_path: Path, shrinker: Shrinker, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, classifier, denoiser = DETECTION[0], shrinker.digits["classifier"], shrinker.digits["denoiser"]
    kernel = "model.group_detectors.trained.kernel"
    small = {
        "model.classifier.weights": str(classifier),
        **{
            f"model.detectors.{name}.denoiser.weights": str(denoiser)
            for name in ("perturbation_mmd", "perturbation_norm")
        },
        **{
            f"model.{name}.kernel.features.classifier.weights": str(classifier)
            for name in ("detectors.sample_mmd", "group_detectors.trained", "group_detectors.median")
        },
        f"{kernel}.weights": None,
        f"{kernel}.feature_bandwidth": 20.0,
        f"{kernel}.pixel_bandwidth": 10.0,
        "model.attack.num_steps": 2,
        "model.rows": 8,
        "model.budgets": [0.05],
        "model.num_reference": 20,
        "model.group_sizes": [3, 50],
        "model.trials": 40,
    }
    run = tmp_path / recipe.stem
    for count in (4, 6):  # the second goes on with the first's records
        evaluate(cli, "test", run, "-c", recipe, *as_words("", small), "--data.num_test", str(count))
    card = json.loads((run / "card.json").read_text())
    assert (card["kind"], card["status"], card["n"]) == ("detection", "ok", 6)
    assert len(list((run / "records").glob("*.jsonl"))) == 2
    for found in card["detectors"].values():
        assert found["by_budget"].keys() == {"0.05", "0.15"}
        assert all(views.keys() == {"adversarial", "random"} for views in found["by_budget"].values())
    assert card["groups"]["left_out"]["group_sizes"] == [50]
    assert card["groups"]["by_detector"]["trained"]["3"]["level"].keys() == {"permutation", "wild_bootstrap"}
    assert {path.name for path in run.glob("*.png")} == {"detection.png", "power.png"}
    assert cli("report", run, "--output", tmp_path / "report") == 0
    assert "Detection of groups" in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.parametrize("recipe", CALIBRATION, ids=lambda path: path.stem)
def test_calibration_recipes_write_a_reference_and_its_threshold(
    recipe: Path, cli: Callable[..., int], tmp_path: Path, shrinker: Shrinker
) -> None:
    content, run = followed(recipe), tmp_path / recipe.stem
    given = content["model"]["init_args"]
    small = shrinker.data(content["data"]) | shrinker.kernel(whole(given["detector"]["init_args"]["kernel"]), KERNEL)
    small |= {"model.group_size": min(2, given["group_size"]), "model.num_reference": 3, "model.num_groups": 19}
    small |= {"data.num_val": 30, "model.num_pool": 24}
    evaluate(cli, "validate", run, "-c", recipe, *as_words("", small))
    reference, threshold = StoredReference(str(run / "reference.safetensors")), read_threshold(run / "threshold.json")
    assert len(reference.images) == 3
    assert reference.made_by["part"] == given.get("reference_of", "validation")
    assert (threshold.reference_sha256, threshold.false_alarm_rate) == (reference.sha256, 0.05)
    assert threshold.num_clean == (19 if threshold.group_size == 2 else 24)


def _unpicked() -> list[Path]:
    """The purifiers that no recipe and no row of a table picks."""
    rows = [row.choice.groups.get("purifier", Path()).resolve() for table in TABLES for row in table.rows]
    picked = [(CONFIGS / name).resolve() for path in EVAL for name in PURIFIER.findall(path.read_text())]
    return [path for path in sorted((CONFIGS / "purifier").glob("*.yaml")) if path.resolve() not in (*rows, *picked)]


@pytest.mark.usefixtures("brief_check")
def _before_its_base(purifier: Path) -> Choice:
    """The base recipe of a purifier, which stands before its classifier."""
    recipe = CONFIGS / "eval" / f"{purifier.stem.partition('_')[0]}.yaml"
    named = re.search(r"configs/(attack/\S+\.yaml)", purifier.read_text())  # where the recipe's has no gradient
    attack = {} if named is None else {"attack": CONFIGS / named[1]}
    return Choice(recipe, groups={"purifier": purifier, **attack})


UNPICKED = _unpicked()
OF_A_KIND = list({classes(followed(path)): path for path in reversed(UNPICKED)}.values())


@pytest.mark.parametrize("purifier", OF_A_KIND, ids=lambda path: path.stem)
@pytest.mark.usefixtures("brief_check")
def test_a_purifier_stands_before_the_classifier_of_its_base_recipe(
    purifier: Path, cli: Callable[..., int], tmp_path: Path, shrinker: Shrinker
) -> None:
    """One of each chain of classes."""
    choice = _before_its_base(purifier)
    evaluate(cli, "predict", tmp_path, *choice.words(), *fastest(shrinker, choice, tmp_path / "attack"))
    assert len((tmp_path / "predictions-rank0.csv").read_text().splitlines()) == 1 + num_judged(choice)


@pytest.mark.parametrize("purifier", [p for p in UNPICKED if p not in OF_A_KIND], ids=lambda path: path.stem)
def test_a_purifier_with_other_numbers_is_understood_and_built(purifier: Path) -> None:
    choice = _before_its_base(purifier)
    assert fits(choice, resolved(choice.words()))
    assert isinstance(built(choice.parts()["purifier"]), Purifier)


@pytest.mark.parametrize("recipe", AUDITED, ids=lambda path: path.stem)
def test_an_evaluation_is_audited_and_reported(
    recipe: Path, cli: Callable[..., int], tmp_path: Path, shrinker: Shrinker
) -> None:
    run, choice = tmp_path / recipe.stem, Choice(recipe)
    small = [*shrinker.evaluation(choice), *FAST, *attack(choice.parts()["attack"], tmp_path, **FAST_ATTACK)]
    evaluate(cli, "test", run, *choice.words(), *small)
    card = json.loads((run / "card.json").read_text())
    assert card["n"] == 2
    assert {"random_directions", "large_eps"} <= card["audit"]["expected_accuracy"].keys()
    assert cli("report", run, "--output", tmp_path / "report") == 0
    assert recipe.stem in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.usefixtures("brief_check")
@pytest.mark.parametrize("attack", AUTOATTACK, ids=lambda path: path.stem)
def test_autoattack_takes_the_place_of_the_attack_of_a_recipe(
    attack: Path, cli: Callable[..., int], tmp_path: Path, shrinker: Shrinker
) -> None:
    """By the command in its file; the one of digits is small enough to be run, the others are built."""
    command = re.search(rf"test -c (configs/eval/\w+\.yaml) --model\.attack {attack} ", attack.read_text())
    assert command is not None, "the command stands in the file"
    recipe, digits = Path(command[1]), attack.stem.startswith("digits")
    words = ("-c", recipe, "--model.attack", attack, *shrinker.evaluation(Choice(recipe)), "--data.num_test", "1")
    words += ("--model.protocol.verdict_draws", "2", "--model.protocol.audit_images", "0", "--model.rows", "8")
    evaluate(cli, "test" if digits else "predict", tmp_path, *words)
    if digits:
        members = json.loads((tmp_path / "card.json").read_text())["audit"]["members"]
        assert [row["attack"] for row in members] == [
            "APGD exact CrossEntropy",
            "APGD exact DifferenceOfLogitsRatio",
        ]
    else:
        assert len((tmp_path / "predictions-rank0.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("recipe", REFERENCE, ids=lambda path: path.stem)
def test_references_are_of_held_out_images(recipe: Path, shrinker: Shrinker) -> None:
    record = json.loads(shrinker.reference(recipe.stem).read_text())
    assert record["made_by"]["data"]["split"] == "validation"
    assert len(record["scores"]) == (130 if recipe.stem.startswith("digits") else 5)


def _by_training() -> list[Path]:
    """A recipe of each class of trainings."""
    return list({followed(path)["model"]["class_path"]: path for path in reversed(TRAIN)}.values())


CLUSTERS = [(recipe, "slurm") for recipe in _by_training()] + [(TRAIN[0], "ddp")]


@pytest.mark.parametrize("recipe", TRAIN, ids=lambda path: path.stem)
def test_a_training_recipe_leaves_the_choice_of_a_cluster_to_its_layer(recipe: Path) -> None:
    own = followed(recipe)
    assert not {"strategy", "num_nodes", "devices", "accelerator"} & (own.get("trainer") or {}).keys()
    assert own["model"]["class_path"].endswith("Training")


@pytest.mark.parametrize(("recipe", "trainer"), CLUSTERS, ids=[f"{trainer}-{path.stem}" for path, trainer in CLUSTERS])
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


@pytest.mark.parametrize("recipe", [*TRAIN, *EVAL, *REFERENCE], ids=lambda path: path.stem)
def test_a_recipe_picks_files_and_names_its_command(recipe: Path) -> None:
    stage = {"train": "fit", "eval": "test", "reference": "validate"}[recipe.parent.name]
    assert f"python cli.py {stage} -c {recipe}" in recipe.read_text()


@pytest.mark.parametrize("recipe", [path for path in EVAL if "_ssni_" in path.stem], ids=lambda path: path.stem)
def test_a_recipe_of_ssni_names_the_command_of_its_reference(recipe: Path) -> None:
    reference = Choice(recipe).parts()["purifier"]["init_args"]["reference"]["init_args"]["file"]
    assert f"python cli.py validate -c configs/reference/{Path(reference).parent.name}.yaml" in recipe.read_text()


def test_the_reference_for_imagenet_is_made_at_the_size_of_the_classifier(
    cli: Callable[..., int], tmp_path: Path, shrinker: Shrinker
) -> None:
    """SSNI scores images of 224 pixels with a denoiser of 256: so must its reference."""
    recipe = CONFIGS / "reference" / "imagenet_eps.yaml"
    words = as_words("", shrinker.of_reference(recipe))
    evaluate(cli, "validate", tmp_path, "-c", recipe, *words, "--model.statistic.num_times", "2")
