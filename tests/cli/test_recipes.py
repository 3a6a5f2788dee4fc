"""Every recipe runs through the real front door, shrunk: real files in the very formats, small networks."""

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lustral.reporting.published import Published, all_published

import lustral.purifiers
from lustral.diffusion import LinearSchedule
from lustral.recipes import check_layers
from tests.cli.shrunk import Shrinker, attack, follow, read, training

CONFIGS = Path("configs")
TRAIN = sorted((CONFIGS / "train").glob("*.yaml"))
EVAL = sorted((CONFIGS / "eval").glob("*.yaml"))
REFERENCE = sorted((CONFIGS / "reference").glob("*.yaml"))
SURROGATE = sorted((CONFIGS / "surrogate").glob("*.yaml"))
AUTOATTACK = sorted((CONFIGS / "attack").glob("*autoattack*.yaml"))

SHRUNK_UNET = [
    *("--model.purifier.denoiser.base_channels", "8", "--model.purifier.denoiser.multipliers", "[1,2]"),
    *("--model.purifier.denoiser.blocks", "1"),
    *("--model.purifier.t_star", "10", "--model.purifier.num_steps", "2"),
]
FAST = [
    *("--data.num_test", "3", "--model.protocol.verdict_draws", "3"),
    *("--model.protocol.audit_images", "1", "--model.rows", "8"),
]
FAST_ATTACK: dict[str, Any] = {"num_steps": 2, "eot": 2, "selection_draws": 2}


FASTEST = [
    *("--data.num_test", "1", "--model.protocol.verdict_draws", "2"),
    *("--model.protocol.audit_images", "0", "--model.rows", "2"),
]
FASTEST_ATTACK: dict[str, Any] = {"num_steps": 1, "eot": 2, "selection_draws": 1, "finalists": 1}


@pytest.fixture(scope="session")
def shrinker(tmp_path_factory: pytest.TempPathFactory, digit_weights: dict[str, Path]) -> Shrinker:
    from cli import main

    return Shrinker(tmp_path_factory.mktemp("shrunk"), digit_weights, lambda *words: main([str(w) for w in words]))


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


def _defences() -> dict[str, list[Path]]:
    """The evaluation recipes that share data, purifier and attack; the first is the one with the usual victim."""
    found: dict[str, list[Path]] = {}
    for recipe in sorted(EVAL, key=lambda path: (len(path.stem), path.stem)):
        whole = read(recipe)
        model = whole["model"]["init_args"]
        found.setdefault(json.dumps([whole["data"], model["purifier"], model["attack"]]), []).append(recipe)
    return found


MAIN = [recipes[0] for recipes in _defences().values()]
VARIANTS = [recipe for recipes in _defences().values() for recipe in recipes[1:]]
AUDITED = [CONFIGS / "eval" / f"{name}.yaml" for name in ("digits_ssni_n_diffpure", "cifar10_undefended")]


def _fastest(recipe: Path, folder: Path) -> list[str]:
    return [*FASTEST, *attack(recipe, folder / "attack", **FASTEST_ATTACK)]


def _evaluate(cli: Callable[..., int], stage: str, run: Path, *words: object) -> None:
    assert cli(stage, *words, "--trainer.default_root_dir", run, "--trainer.accelerator", "cpu") == 0


@pytest.mark.parametrize("recipe", MAIN, ids=lambda path: path.stem)
def test_evaluation_recipes_write_a_card(
    recipe: Path, cli: Callable[..., int], tmp_path: Path, shrinker: Shrinker
) -> None:
    _evaluate(cli, "test", tmp_path, "-c", recipe, *shrinker.evaluation(recipe), *_fastest(recipe, tmp_path))
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["schema"] == 1
    assert card["n"] == 1
    assert {"one_shot", "majority", "expected", "worst"} <= card["verdicts"].keys()
    for verdict in card["verdicts"].values():
        for kind in ("clean", "robust"):
            assert 0 <= verdict[kind]["low"] <= verdict[kind]["value"] <= verdict[kind]["high"] <= 1
    assert card["cost"]["network_calls_per_image"] > 0
    assert card["cost"]["peak_memory_mib"] > 0
    assert len(list((tmp_path / "records").glob("*.jsonl"))) == 1
    assert (tmp_path / "panels.png").is_file()


@pytest.mark.parametrize("recipe", VARIANTS, ids=lambda path: path.stem)
def test_recipes_of_the_same_purifier_and_attack_build_too(
    recipe: Path, cli: Callable[..., int], tmp_path: Path, shrinker: Shrinker
) -> None:
    """Another classifier or threat: everything is built, and the defence classifies an image."""
    _evaluate(cli, "predict", tmp_path, "-c", recipe, *shrinker.evaluation(recipe), *_fastest(recipe, tmp_path))
    _, *lines = (tmp_path / "predictions-rank0.csv").read_text().splitlines()
    assert len(lines) == 1


@pytest.mark.parametrize("recipe", AUDITED, ids=lambda path: path.stem)
def test_an_evaluation_is_audited_and_reported(
    recipe: Path, cli: Callable[..., int], tmp_path: Path, shrinker: Shrinker
) -> None:
    run = tmp_path / recipe.stem
    small = [*shrinker.evaluation(recipe), *FAST, *attack(recipe, tmp_path, **FAST_ATTACK)]
    _evaluate(cli, "test", run, "-c", recipe, *small)
    card = json.loads((run / "card.json").read_text())
    assert card["n"] == 3
    assert {"random_directions", "large_eps"} <= card["audit"]["expected_accuracy"].keys()
    assert cli("report", run, "--output", tmp_path / "report") == 0
    assert recipe.stem in (tmp_path / "report" / "report.md").read_text()


def _recipe_of(layer: Path) -> Path:
    words = re.search(rf"test -c (configs/eval/\w+\.yaml) -c {layer} ", layer.read_text())
    assert words is not None, "the command stands in the file"
    return Path(words[1])


def _differentiated(layer: Path) -> tuple[dict[str, Any], Path]:
    """What the attack of a second layer differentiates."""
    attack, place = follow(read(layer)["model"]["init_args"]["attack"], layer.parent)
    return follow(attack["init_args"]["surrogate"], place)


def _kinds() -> dict[tuple[str, bool], list[Path]]:
    """The layers by the surrogate's class, and whether images are resized for it (or for what is in it)."""
    found: dict[tuple[str, bool], list[Path]] = {}
    for layer in SURROGATE:
        surrogate, _ = _differentiated(layer)
        found.setdefault((surrogate["class_path"], "resize_to" in str(surrogate)), []).append(layer)
    return found


@pytest.mark.parametrize("layer", [layers[0] for layers in _kinds().values()], ids=lambda path: path.stem)
def test_surrogates_are_a_second_layer(
    layer: Path, cli: Callable[..., int], tmp_path: Path, shrinker: Shrinker
) -> None:
    recipe = _recipe_of(layer)
    small = [*shrinker.evaluation(recipe, layer), *_fastest(layer, tmp_path)]
    _evaluate(cli, "test", tmp_path, "-c", recipe, "-c", layer, *small)
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["attack"]["surrogate"]
    assert "surrogate" in card["status"]


@pytest.mark.parametrize(
    "layer", [layer for layer in SURROGATE if not layer.stem.endswith("classifier")], ids=lambda path: path.stem
)
def test_a_surrogate_is_the_defence_in_fewer_steps(layer: Path) -> None:
    """Nothing else of it differs: what a defence is given, and its surrogate is not, would be lost unseen."""
    surrogate, place = _differentiated(layer)
    recipe = _recipe_of(layer)
    check_layers(["test", "-c", str(recipe), "-c", str(layer)])
    model = read(recipe)["model"]["init_args"]
    both = (surrogate, place), follow(model["purifier"], CONFIGS / "eval")
    made, given = (_plain(part, at) for part, at in both)
    steps = [sum(number for _, number in _rounds(part)) for part in (made, given)]
    assert steps[0] < steps[1]
    for t_star, number in _rounds(made):
        assert len(LinearSchedule().grid(t_star, number)) == number + 1
    for part in (made, given):
        for inner in (part, part["init_args"].get("purifier", part)):
            known = getattr(lustral.purifiers, inner["class_path"].rpartition(".")[2])
            assert inspect.signature(known).parameters.keys() >= inner["init_args"].keys()
            for name in ("rounds", "num_steps", "layout"):
                inner["init_args"].pop(name, None)
    assert made == given


@pytest.mark.parametrize("name", sorted({row.recipe for row in all_published() if "surrogate" in row.attack}))
def test_a_number_that_was_published_of_a_surrogate_can_be_had(name: str) -> None:
    """By a second layer for the same purifier, whatever the classifier and the threat are."""
    purifiers = [read(_recipe_of(layer))["model"]["init_args"]["purifier"] for layer in SURROGATE]
    assert read(CONFIGS / "eval" / f"{name}.yaml")["model"]["init_args"]["purifier"] in purifiers


def _rounds(part: dict[str, Any]) -> list[tuple[int, int]]:
    options = part["init_args"]
    options = options["purifier"]["init_args"] if "purifier" in options else options
    return options["rounds"] if "rounds" in options else [(options["t_star"], options["num_steps"])]


def _plain(value: Any, folder: Path) -> Any:
    """A part with the files that it picks in their places."""
    if isinstance(value, str) and value.endswith(".yaml"):
        return _plain(read(folder / value), (folder / value).parent)
    return {name: _plain(inner, folder) for name, inner in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("attack", AUTOATTACK, ids=lambda path: path.stem)
def test_autoattack_takes_the_place_of_the_attack_of_a_recipe(
    attack: Path, cli: Callable[..., int], tmp_path: Path, shrinker: Shrinker
) -> None:
    """By the command in its file; the one of digits is small enough to be run, the others are built."""
    command = re.search(rf"test -c (configs/eval/\w+\.yaml) --model\.attack {attack} ", attack.read_text())
    assert command is not None, "the command stands in the file"
    recipe, digits = Path(command[1]), attack.stem.startswith("digits")
    words = ("-c", recipe, "--model.attack", attack, *shrinker.evaluation(recipe), "--data.num_test", "1")
    words += ("--model.protocol.verdict_draws", "2", "--model.protocol.audit_images", "0", "--model.rows", "8")
    _evaluate(cli, "test" if digits else "predict", tmp_path, *words)
    if digits:
        members = json.loads((tmp_path / "card.json").read_text())["audit"]["members"]
        assert [row["attack"] for row in members] == [
            "APGD exact CrossEntropy",
            "APGD exact DifferenceOfLogitsRatio",
        ]
    else:
        assert len((tmp_path / "predictions-rank0.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("attack", AUTOATTACK, ids=lambda path: path.stem)
def test_autoattack_leaks_nothing_of_any_recipes_attack(attack: Path) -> None:
    for recipe in EVAL:
        check_layers(["test", "-c", str(recipe), "--model.attack", str(attack)])


@pytest.mark.parametrize("recipe", REFERENCE, ids=lambda path: path.stem)
def test_references_are_of_held_out_images(recipe: Path, shrinker: Shrinker) -> None:
    record = json.loads(shrinker.reference(recipe.stem).read_text())
    assert record["made_by"]["data"]["split"] == "validation"
    assert len(record["scores"]) == (130 if recipe.stem.startswith("digits") else 5)


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


@pytest.mark.parametrize("recipe", [*TRAIN, *EVAL, *REFERENCE], ids=lambda path: path.stem)
def test_a_recipe_picks_files_and_names_its_command(recipe: Path) -> None:
    stage = {"train": "fit", "eval": "test", "reference": "validate"}[recipe.parent.name]
    assert f"python cli.py {stage} -c {recipe}" in recipe.read_text()


@pytest.mark.parametrize("recipe", [path for path in EVAL if "_ssni_" in path.stem], ids=lambda path: path.stem)
def test_a_recipe_of_ssni_names_the_reference_it_needs(recipe: Path) -> None:
    """The right command, and the statistic and what scores (the purifier's denoiser or another) are the reference's."""
    model = read(recipe)["model"]["init_args"]
    purifier, _ = follow(model["purifier"], recipe.parent)
    file = Path(purifier["init_args"]["reference"]["init_args"]["file"])
    reference = CONFIGS / "reference" / f"{file.parent.name}.yaml"
    assert f"python cli.py validate -c {reference}" in recipe.read_text()
    made = read(reference)["model"]["init_args"]
    inner, _ = follow(purifier["init_args"]["purifier"], CONFIGS / "purifier")
    scorer = purifier["init_args"].get("scorer", inner["init_args"]["denoiser"])
    assert Path(scorer).name == Path(made["denoiser"]).name
    assert purifier["init_args"]["statistic"] == made["statistic"]


VICTIMS = {
    "WRN-28-10": "wrn28-10",
    "WRN-70-16": "wrn70-16",
    "ResNet-50": "resnet50",
    "WRN-50-2": "wide_resnet50_2",
    "DeiT-S": "deit_small",
}


@pytest.mark.parametrize("row", all_published(), ids=lambda row: f"{row.recipe}-{row.source.split()[0]}-{row.attack}")
def test_a_published_number_stands_beside_a_recipe_of_its_kind(row: Published) -> None:
    path = CONFIGS / "eval" / f"{row.recipe}.yaml"
    model = read(path)["model"]["init_args"]
    threat, _ = follow(model["threat"], path.parent)
    assert f"{threat['norm']} {threat['eps']}" == row.threat or row.threat.startswith("StAdv")
    if row.dataset != "SVHN":
        assert model["classifier"].endswith(f"_{VICTIMS[row.classifier]}.yaml")
    assert row.dataset.lower().replace("-", "") == row.recipe.partition("_")[0]


def test_the_reference_for_imagenet_is_made_at_the_size_of_the_classifier(
    cli: Callable[..., int], tmp_path: Path, shrinker: Shrinker
) -> None:
    """SSNI scores images of 224 pixels with a denoiser of 256: so must its reference."""
    recipe = CONFIGS / "reference" / "imagenet_eps.yaml"
    denoiser, folder = follow(read(recipe)["model"]["init_args"]["denoiser"], recipe.parent)
    words = [*shrinker.data(recipe), *shrinker.network(denoiser, folder, "--model.denoiser")]
    _evaluate(cli, "validate", tmp_path, "-c", recipe, *words, "--model.statistic.num_times", "2")
