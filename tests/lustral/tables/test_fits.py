"""A finished run is known by the classes and options that its card holds, whatever its folder is called."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lustral.tables import Choice, fits

CONFIGS = Path("configs")
DIFFPURE = Choice(CONFIGS / "eval" / "digits_diffpure.yaml")
Config = dict[str, Any]


@pytest.fixture
def config() -> Config:
    """As a card has it, with some defaults written out and some left out."""
    denoiser = {
        "class_path": "lustral.networks.load_denoiser",
        "init_args": {"weights": "/elsewhere/digits_diffusion/weights.safetensors"},
    }
    purifier = {
        "denoiser": denoiser,
        "solver": {"class_path": "lustral.diffusion.EulerMaruyama"},
        "t_star": 100.0,
        "num_steps": 10,
        "forward_schedule": "denoiser",
    }
    attack = {"num_steps": 20, "eot": 8, "gradient": "exact", "restarts": 1, "surrogate": None, "random_start": True}
    classifier = {"weights": "mine/digits_classifier/weights.safetensors"}
    parts = {
        "classifier": {"class_path": "lustral.networks.load_classifier", "init_args": classifier},
        "purifier": {"class_path": "lustral.purifiers.DiffPure", "init_args": purifier},
        "attack": {"class_path": "lustral.attacks.PGD", "init_args": attack},
        "threat": {"norm": "linf", "eps": "15/100", "bounds": [0.0, 1.0]},
        "protocol": {"verdict_draws": 4},
        "seed": 3,
        "rows": 8,
    }
    data = {"class_path": "datamodules.Digits", "init_args": {"batch_size": 2, "num_test": 5, "seed": 0}}
    model = {"class_path": "lightning_modules.RobustnessEvaluation", "init_args": parts}
    return {"model": model, "data": data, "trainer": {"devices": 2}}


def _part(config: Config, name: str) -> Config:
    return config["data"] if name == "data" else config["model"]["init_args"][name]


def test_a_run_fits_what_it_was_told(config: Config) -> None:
    before = copy.deepcopy(config)
    assert fits(DIFFPURE, config)
    assert config == before
    assert not fits(Choice(CONFIGS / "eval" / "digits_undefended.yaml"), config)
    assert not fits(DIFFPURE, {})
    assert not fits(DIFFPURE, {"model": None, "data": None})


FREE: dict[str, Callable[[Config], Any]] = {
    "how many images": lambda c: _part(c, "data")["init_args"].update(num_test=400),
    "the protocol": lambda c: _part(c, "protocol").update(verdict_draws=32),
    "the seed": lambda c: c["model"]["init_args"].update(seed=7),
    "a default left out": lambda c: _part(c, "purifier")["init_args"].pop("forward_schedule"),
    "another default left out": lambda c: _part(c, "attack")["init_args"].pop("restarts"),
    "a default written out": lambda c: _part(c, "attack")["init_args"].update(finalists=3),
    "a class without options": lambda c: _part(c, "purifier")["init_args"]["solver"].update(init_args={}),
    "a class path alone": lambda c: _part(c, "purifier")["init_args"].update(solver="lustral.diffusion.EulerMaruyama"),
    "weights of another place": lambda c: _part(c, "classifier")["init_args"].update(
        weights="x/digits_classifier/weights.safetensors"
    ),
    "a number as text": lambda c: _part(c, "threat").update(eps="0.15"),
}
OTHER: dict[str, Callable[[Config], Any]] = {
    "t_star": lambda c: _part(c, "purifier")["init_args"].update(t_star=50),
    "no default": lambda c: _part(c, "purifier")["init_args"].update(forward_schedule="discrete"),
    "restarts": lambda c: _part(c, "attack")["init_args"].update(restarts=2),
    "a surrogate": lambda c: _part(c, "attack")["init_args"].update(surrogate="lustral.purifiers.Identity"),
    "a flag": lambda c: _part(c, "attack")["init_args"].update(random_start=False),
    "eps": lambda c: _part(c, "threat").update(eps=0.1),
    "the norm": lambda c: _part(c, "threat").update(norm="l2"),
    "the class": lambda c: _part(c, "purifier").update(class_path="lustral.purifiers.GDMP"),
    "an inner class": lambda c: _part(c, "purifier")["init_args"].update(solver="lustral.diffusion.FlowEuler"),
    "weights of another name": lambda c: _part(c, "classifier")["init_args"].update(weights="x/other.safetensors"),
    "weights of another training": lambda c: _part(c, "classifier")["init_args"].update(
        weights="runs/train/digits_adversarial/weights.safetensors"
    ),
    "no weights": lambda c: _part(c, "classifier")["init_args"].update(weights=None),
    "a vote of views": lambda c: c["model"]["init_args"].update(merge="vote"),
    "the data": lambda c: _part(c, "data").update(class_path="datamodules.StreetDigits"),
    "validation images": lambda c: _part(c, "data")["init_args"].update(test_on="validation"),
}


@pytest.mark.parametrize("change", FREE)
def test_what_is_free(change: str, config: Config) -> None:
    FREE[change](config)
    assert fits(DIFFPURE, config)


@pytest.mark.parametrize("change", OTHER)
def test_what_makes_another_evaluation(change: str, config: Config) -> None:
    OTHER[change](config)
    assert not fits(DIFFPURE, config)


@pytest.mark.parametrize(("given", "expected"), [("8/255", True), (8 / 255, True), ("4/255", False)])
def test_ratios_are_numbers(given: object, expected: bool, config: Config) -> None:
    _part(config, "threat").update(eps=given)
    assert fits(Choice(DIFFPURE.recipe, options={"model.threat.eps": "8/255"}), config) == expected


def test_lists_are_compared_piece_by_piece(config: Config) -> None:
    gnsp = Choice(CONFIGS / "eval" / "digits_gnsp.yaml")
    chosen = gnsp.parts()["purifier"]
    config["model"]["init_args"]["purifier"] = copy.deepcopy(chosen)
    assert fits(gnsp, config)
    rounds = config["model"]["init_args"]["purifier"]["init_args"]["rounds"]
    config["model"]["init_args"]["purifier"]["init_args"]["rounds"] = [(float(t), n) for t, n in rounds]
    assert fits(gnsp, config)
    config["model"]["init_args"]["purifier"]["init_args"]["rounds"] = rounds[:-1]
    assert not fits(gnsp, config)


def test_the_members_of_an_ensemble_count(config: Config) -> None:
    attack = CONFIGS / "attack" / "digits_autoattack_rand.yaml"
    choice = Choice(DIFFPURE.recipe, groups={"attack": attack})
    assert not fits(choice, config)
    config["model"]["init_args"]["attack"] = copy.deepcopy(choice.parts()["attack"])
    assert fits(choice, config)
    members = config["model"]["init_args"]["attack"]["init_args"]["attacks"]
    members[1]["init_args"]["eot"] = 3
    assert not fits(choice, config)


def test_classes_from_elsewhere_are_compared_by_what_is_written(config: Config, tmp_path: Path) -> None:
    layer = tmp_path / "layer.yaml"
    layer.write_text("model: {init_args: {purifier: {class_path: not_there.Mine, init_args: {strength: 3}}}}\n")
    choice = Choice(DIFFPURE.recipe, (layer,))
    mine = {"class_path": "not_there.Mine", "init_args": {"strength": 3}}
    config["model"]["init_args"]["purifier"] = mine
    assert fits(choice, config)
    config["model"]["init_args"]["purifier"] = {**mine, "init_args": {"strength": 4}}
    assert not fits(choice, config)
