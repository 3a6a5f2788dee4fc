"""What is chosen for a part takes the whole place of what was there: nothing of another choice stays in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lustral.choices import resets

PURIFIERS = "configs/purifier"
ODE, DDPM = f"{PURIFIERS}/cifar10_diffpure_ode.yaml", f"{PURIFIERS}/cifar10_diffpure_ddpm.yaml"
RECIPE = ("test", "-c", "configs/eval/cifar10_diffpure.yaml")
KEY = "--model.purifier"


class Plain:
    """A part of a test's recipes."""

    def __init__(self, a: int = 1, b: float | None = None, c: str = "x y", flag: bool = True) -> None: ...


class Other:
    """Another, with options of the same names, and one whose default no word can be."""

    def __init__(self, a: int = 2, c: str = "z", pair: tuple[int, int] = (1, 2), inner: object = None) -> None: ...


HERE = "tests.lustral.test_resets"


def _part(name: str, **options: Any) -> dict[str, Any]:
    return {"class_path": f"{HERE}.{name}", "init_args": options}


@pytest.fixture
def layer(tmp_path: Path) -> Callable[..., str]:
    """Writes a file that chooses a purifier, or anything, and gives its path."""

    def write(name: str, purifier: Any, whole: bool = True) -> str:
        path = tmp_path / f"{name}.yaml"
        model = {"class_path": "lightning_modules.RobustnessEvaluation", "init_args": {"purifier": purifier}}
        path.write_text(yaml.safe_dump({"model": model} if whole else purifier))
        return str(path)

    return write


def _pairs(*words: str) -> dict[str, str]:
    found = resets(words)
    return dict(zip(found[::2], found[1::2], strict=True))


def test_a_recipe_alone_resets_nothing() -> None:
    assert resets(RECIPE) == []
    assert resets(["test", "-c", "configs/eval/cifar10.yaml", KEY, ODE]) == []


def test_a_file_of_the_same_class_resets_what_it_leaves_out() -> None:
    assert _pairs(*RECIPE, KEY, DDPM) == {f"{KEY}.forward_schedule": "denoiser"}
    assert _pairs(*RECIPE, f"{KEY}={DDPM}") == {f"{KEY}.forward_schedule": "denoiser"}
    assert _pairs(*RECIPE, KEY, ODE) == {}


def test_so_does_a_second_file_on_the_command_line() -> None:
    """As where all rows of a table are given another purifier than their own."""
    base = ("test", "-c", "configs/eval/cifar10.yaml")
    assert _pairs(*base, KEY, ODE, KEY, DDPM) == {f"{KEY}.forward_schedule": "denoiser"}
    network = {f"{KEY}.denoiser.labels": "continuous", f"{KEY}.denoiser.schedule_type": "null"}
    assert _pairs(*base, KEY, DDPM, KEY, ODE) == network
    assert _pairs(*RECIPE, KEY, DDPM, KEY, ODE) == network, "the first file's reset is taken back"


def test_a_class_alone_resets_the_options_of_another_but_not_its_own() -> None:
    attack = "--model.attack"
    assert _pairs(*RECIPE, attack, "lustral.attacks.PGD") == {}
    assert _pairs(*RECIPE, attack, "lustral.attacks.APGD")[f"{attack}.eot"] == "1"


def test_nested_parts_are_reset_too(layer: Callable[..., str]) -> None:
    words = ("test", "-c", layer("first", _part("Other", inner=_part("Plain", a=5, b=0.5))))
    assert _pairs(*words, KEY, layer("second", _part("Other", inner=_part("Plain", a=6)), whole=False)) == {
        f"{KEY}.inner.b": "null"
    }
    assert _pairs(*words, KEY, layer("third", _part("Other", inner=_part("Other", c="q")), whole=False)) == {
        f"{KEY}.inner.a": "2"
    }
    assert _pairs(*words, f"{KEY}.inner", layer("fourth", _part("Plain", b=2.0), whole=False)) == {
        f"{KEY}.inner.a": "1"
    }


def test_another_class_in_a_second_layer_resets(layer: Callable[..., str]) -> None:
    first, second = layer("first", _part("Plain", a=5, c="c", b=0.1)), layer("second", _part("Other", c="other"))
    assert _pairs("test", "-c", first, "-c", second) == {f"{KEY}.a": "2"}
    assert _pairs("test", "-c", second, "-c", layer("third", _part("Plain"))) == {f"{KEY}.c": "x y"}


def test_a_layer_of_the_same_class_only_changes_options(layer: Callable[..., str]) -> None:
    first, second = layer("first", _part("Plain", a=5, b=0.1)), layer("second", _part("Plain", a=6))
    assert resets(["test", "-c", first, "-c", second]) == []
    assert resets(["test", "-c", first, "-c", layer("third", {"init_args": {"a": 7}})]) == []
    other = layer("fourth", _part("Other"))
    assert _pairs("test", "-c", first, "-c", second, "-c", other) == {f"{KEY}.a": "2"}, "both layers' options"


def test_explicit_words_win(layer: Callable[..., str]) -> None:
    assert _pairs(*RECIPE, KEY, DDPM, f"{KEY}.forward_schedule", "discrete") == {}
    assert _pairs(*RECIPE, f"{KEY}.forward_schedule=discrete", KEY, DDPM) == {}
    assert _pairs(*RECIPE, KEY, DDPM, f"{KEY}.init_args.forward_schedule", "discrete") == {}
    layers = ("-c", layer("first", _part("Plain", a=5, c="c")), "-c", layer("second", _part("Other")))
    assert _pairs("test", *layers, f"{KEY}.a", "9") == {f"{KEY}.c": "z"}


def test_a_later_layer_that_sets_the_option_wins(layer: Callable[..., str]) -> None:
    layers = ("-c", layer("first", _part("Plain", a=5, c="c")), "-c", layer("second", _part("Other")))
    third = layer("third", {"class_path": f"{HERE}.Other", "init_args": {"a": 8}})
    assert _pairs("test", *layers, "-c", third) == {f"{KEY}.c": "z"}


def test_a_default_that_cannot_be_written_is_refused(layer: Callable[..., str]) -> None:
    first = layer("first", {"class_path": f"{HERE}.Other", "init_args": {"pair": [3, 4]}})
    second = layer("second", _part("Other"), whole=False)
    with pytest.raises(ValueError) as refused:
        resets(["test", "-c", first, KEY, second])
    told = str(refused.value)
    assert told.startswith(f"{second} chooses {HERE}.Other for model.purifier in the place of {HERE}.Other in {first},")
    assert told.endswith("whose pair would leak into it: give --model.purifier.pair.")
    assert resets(["test", "-c", first, KEY, second, f"{KEY}.pair", "[1, 2]"]) == []


def test_words_that_are_no_parts_are_left_alone() -> None:
    more = ("--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--ckpt_path", "x.yaml", "--data.num_test", "3")
    assert resets([*RECIPE, *more]) == []
    with pytest.raises(ValueError, match=r"the command line picks nowhere.yaml for model.attack, and there is no such"):
        resets([*RECIPE, "--model.attack", "nowhere.yaml"])


def test_a_layer_after_an_option_comes_after_it(layer: Callable[..., str]) -> None:
    """The parser goes through the words in their order, and so must the resets."""
    ode, ddpm = (layer(name, str(Path(file).resolve())) for name, file in (("ode", ODE), ("ddpm", DDPM)))
    base = ("test", "-c", "configs/eval/cifar10.yaml")
    network = {f"{KEY}.denoiser.labels": "continuous", f"{KEY}.denoiser.schedule_type": "null"}
    assert _pairs(*base, KEY, DDPM, "-c", ode) == network
    assert _pairs(*base, KEY, ODE, "-c", ddpm) == {f"{KEY}.forward_schedule": "denoiser"}


def test_a_file_that_a_layer_picks_takes_the_whole_place_too(layer: Callable[..., str]) -> None:
    """Options that a layer writes out for the class that is there change these alone; a file is a choice."""
    ode, ddpm = (layer(name, str(Path(file).resolve())) for name, file in (("ode", ODE), ("ddpm", DDPM)))
    base = ("test", "-c", "configs/eval/cifar10.yaml")
    assert _pairs(*base, "-c", ode, "-c", ddpm) == {f"{KEY}.forward_schedule": "denoiser"}
    written = layer("written", {"class_path": "lustral.purifiers.DiffPure", "init_args": {"t_star": 50}})
    assert _pairs(*base, "-c", ode, "-c", written) == {}


@pytest.mark.parametrize("other", ["apgd_t", "autoattack_rand"])
def test_lists_are_exchanged_as_they_are(other: str) -> None:
    words = ("test", "-c", "configs/eval/digits.yaml", "--model.attack", "configs/attack/digits_ssni_ensemble.yaml")
    assert not [word for word in resets([*words, "--model.attack", f"configs/attack/{other}.yaml"]) if "[" in word]
