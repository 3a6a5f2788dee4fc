"""A row's evaluation: the words of its command, and its parts as plain data."""

import os
from pathlib import Path

import pytest

from lustral.tables import Choice
from lustral.tables.choice import in_one_line

CONFIGS = Path("configs")
BASE = CONFIGS / "eval" / "digits.yaml"
DIFFPURE = CONFIGS / "purifier" / "digits_diffpure.yaml"
SSNI = CONFIGS / "purifier" / "digits_ssni_n_diffpure.yaml"


def test_the_words_of_a_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups in the order of the recipes, whatever the table's; paths from where one stands."""
    layer = CONFIGS / "tables" / ".." / "layer" / "cifar10_wrn70-16.yaml"
    groups = {"protocol": CONFIGS / "protocol" / "draws5.yaml", "purifier": DIFFPURE}
    choice = Choice(BASE, (layer,), groups, {"model.purifier.t_star": 50, "data.num_test": None})
    words = ["-c", "configs/eval/digits.yaml", "-c", "configs/layer/cifar10_wrn70-16.yaml"]
    words += ["--model.purifier", "configs/purifier/digits_diffpure.yaml"]
    words += ["--model.protocol", "configs/protocol/draws5.yaml"]
    words += ["--model.purifier.t_star", "50", "--data.num_test", "null"]
    assert choice.words() == words
    absolute = Choice(BASE.resolve())
    monkeypatch.chdir(tmp_path)
    assert absolute.words() == ["-c", os.path.relpath(absolute.recipe)]


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (5, "5"),
        (0.25, "0.25"),
        ("8/255", "8/255"),
        (None, "null"),
        (False, "false"),
        ([[30, 1], [50, 1]], "[[30, 1], [50, 1]]"),
        ({"num_steps": 5}, "{num_steps: 5}"),
        ({"rounds": [[100, 100]] * 40}, None),
    ],
)
def test_a_value_is_one_word(value: object, word: str | None) -> None:
    assert "\n" not in in_one_line(value)
    assert word is None or in_one_line(value) == word


def test_the_parts_of_a_choice_hold_the_picked_files() -> None:
    parts = Choice(BASE, groups={"purifier": SSNI}).parts()
    assert set(parts) == {"data", "classifier", "purifier", "attack", "threat", "protocol"}
    assert parts["data"]["class_path"] == "datamodules.Digits"
    assert parts["threat"] == {"norm": "linf", "eps": 0.15}
    inner = parts["purifier"]["init_args"]["purifier"]
    assert inner["init_args"]["denoiser"]["class_path"] == "lustral.networks.load_denoiser"
    assert parts["purifier"]["init_args"]["statistic"]["class_path"] == "lustral.diffusion.EPS"
    assert Choice(BASE).parts()["purifier"] is None


def test_options_change_parts_and_leave_files_as_they_are() -> None:
    options = {
        "model.purifier.levels.temperature": 20.0,
        "model.purifier.purifier.t_star": 50,
        "model.purifier.purifier.solver.eta": 0.5,
        "model.threat.eps": "8/255",
        "model.attack.surrogate": None,
        "data.test_on": "validation",
        "model.rows": 4,
    }
    parts = Choice(BASE, groups={"purifier": SSNI}, options=options).parts()
    purifier = parts["purifier"]["init_args"]
    assert purifier["levels"]["init_args"] == {"bias": 5.0, "temperature": 20.0}
    assert purifier["purifier"]["init_args"]["t_star"] == 50
    solver = {"class_path": "lustral.diffusion.EulerMaruyama", "init_args": {"eta": 0.5}}
    assert purifier["purifier"]["init_args"]["solver"] == solver, "a class path alone gets options too"
    assert parts["threat"] == {"norm": "linf", "eps": "8/255"}
    assert parts["attack"]["init_args"]["surrogate"] is None
    assert parts["data"]["init_args"] == {"batch_size": 64, "test_on": "validation"}
    untouched = Choice(BASE, groups={"purifier": SSNI}).parts()["purifier"]["init_args"]
    assert untouched["levels"]["init_args"]["temperature"] == 10.0


def test_a_layer_changes_options_or_takes_the_whole_place(tmp_path: Path) -> None:
    recipe = CONFIGS / "eval" / "digits_diffpure.yaml"
    start = Choice(recipe).parts()["purifier"]
    same, other, after = (tmp_path / f"{name}.yaml" for name in ("same", "other", "after"))
    same.write_text("model: {init_args: {purifier: {init_args: {t_star: 50}}}}\n")
    other.write_text("model: {init_args: {purifier: {class_path: lustral.purifiers.GDMP, init_args: {t_star: 36}}}}\n")
    after.write_text("model: {init_args: {purifier: {init_args: {num_steps: 3}}}}\n")
    assert Choice(recipe, (same,)).parts()["purifier"]["init_args"] == {**start["init_args"], "t_star": 50}
    found = Choice(recipe, (other, after)).parts()["purifier"]
    assert found == {"class_path": "lustral.purifiers.GDMP", "init_args": {"t_star": 36, "num_steps": 3}}
    assert Choice(recipe).parts()["purifier"] == start


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("a: [")
    with pytest.raises(ValueError, match=r"bad.yaml cannot be read .*: mend it, or choose another"):
        Choice(path).parts()


def test_a_file_that_a_layer_picks_replaces_a_part_and_options_written_in_it_change_them(tmp_path: Path) -> None:
    ode, ddpm = (CONFIGS / "purifier" / f"cifar10_diffpure_{name}.yaml" for name in ("ode", "ddpm"))
    whole, some = tmp_path / "whole.yaml", tmp_path / "some.yaml"
    whole.write_text(f"model:\n  init_args:\n    purifier: {ddpm.resolve()}\n")
    some.write_text(
        "model:\n  init_args:\n    purifier: {class_path: lustral.purifiers.DiffPure, init_args: {t_star: 50}}\n"
    )
    first = tmp_path / "first.yaml"
    first.write_text(f"model:\n  init_args:\n    purifier: {ode.resolve()}\n")
    base = CONFIGS / "eval" / "cifar10.yaml"
    chosen = Choice(base, groups={"purifier": ddpm}).parts()["purifier"]
    assert Choice(base, (first, whole)).parts()["purifier"] == chosen
    changed = Choice(base, (first, some)).parts()["purifier"]["init_args"]
    assert changed["t_star"] == 50
    assert changed["forward_schedule"] == "discrete"
