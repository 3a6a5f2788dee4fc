"""Classes, options and missing parts are told in our own words, before the parser runs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lustral.choices import check_choices

HERE = "tests.lustral.test_choices"
EVAL = ("test", "-c", "configs/eval/digits_diffpure.yaml")
BASE = ("test", "-c", "configs/eval/digits.yaml")
FIT = ("fit", "-c", "configs/train/digits_classifier.yaml")
TRAINER = {"trainer": "lightning.pytorch.Trainer"}


@dataclass
class Fixed:
    """A part whose class nobody chooses."""

    low: float = 0.0
    high: float = 1.0


class Inner:
    """Needs something."""

    def __init__(self, size: int, name: str = "") -> None: ...


class Nest:
    """Holds a dataclass that no dotted name leads to."""

    @dataclass
    class Egg:
        size: int = 0


class Anything:
    """Says nothing of its options."""

    def __init__(self, **options: int) -> None: ...


class Outer:
    """A part of a test's recipes."""

    def __init__(
        self,
        inner: object,
        make: Callable[[int], Inner] | None = None,
        fixed: Fixed = Fixed(),  # noqa: B008
        maybe: "Inner | None" = None,
        several: list[object] | None = None,
        root: str = "data",
        kind: type[Inner] | None = None,
        nested: Nest.Egg = Nest.Egg(),  # noqa: B008
    ) -> None: ...


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., str]:
    """Writes a recipe whose model is an `Outer` of some options, and gives its path."""

    def write(name: str = "recipe", **options: Any) -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"model": {"class_path": f"{HERE}.Outer", "init_args": options}}))
        return str(path)

    return write


INNER = {"class_path": f"{HERE}.Inner", "init_args": {"size": 3}}

ACCEPTED: list[list[str]] = [
    [],
    ["--model.inner.size", "4", "--model.inner.name=x", "--model.init_args.inner.init_args.name", "y"],
    ["--model.inner", f"{HERE}.Anything", "--model.inner.whatever", "3"],
    ["--model.inner", "Short", "--model.inner.whatever", "3"],
    ["--model.inner", "{class_path: Short, init_args: {whatever: 3}}", "--model.inner.whatever", "3"],
    ["--model.inner", f"{{class_path: {HERE}.Inner, init_args: {{size: 3}}}}"],
    ["--model.inner.class_path", f"{HERE}.Inner", "--model.inner.dict_kwargs.whatever", "3"],
    ["--model.inner", "{broken", "--model.inner.whatever", "3"],
    ["--model.make", f"{HERE}.Inner"],
    ["--model.fixed.low", "0.5", "--model.fixed", "{high: 2}"],
    ["--model.maybe", f"{HERE}.Inner", "--model.maybe.size", "3", "--model.maybe", "null"],
    ["--model.several+", f"{HERE}.Inner", "--model.several.size", "3"],
    ["--model.several", f"[{{class_path: {HERE}.Inner}}]", "--model.several.size", "3"],
    ["--model.root", "some.Folder"],
    ["--model.kind", f"{HERE}.Inner"],
    ["--model.nested.size", "3"],
    ["--model.maybe", f"{HERE}.Inner", "--model.help"],
    ["--ckpt_path", "some.Thing", "--print_config", "--allow_untrained=true", "--seed_everything", "3"],
    ["--trainer.callbacks+", "callbacks.EMA", "--trainer.callbacks.decay", "0.9", "--trainer.devices", "2"],
]


@pytest.mark.parametrize("words", ACCEPTED, ids=" ".join)
def test_what_may_be_right_is_left_to_the_parser(words: list[str], recipe: Callable[..., str]) -> None:
    check_choices(["test", "-c", recipe(inner=INNER), *words], TRAINER)


@pytest.mark.parametrize("command", [EVAL, FIT])
def test_recipes_are_accepted(command: tuple[str, ...]) -> None:
    check_choices(command, TRAINER)


REFUSED: list[tuple[list[str], str]] = [
    (["--model.innr", "x"], "model: Outer has no option innr; did you mean inner?"),
    (["--model.inner.sise", "4"], "model.inner: Inner has no option sise; did you mean size?"),
    (["--model.init_args.inner.init_args.sise=4"], "model.inner: Inner has no option sise; did you mean size?"),
    (["--model.inner.class_path", f"{HERE}.Innr"], f"model.inner: {HERE} has no class Innr."),
    (["--model.inner", "lustral.attacks.PDG"], "model.inner: lustral.attacks has no class PDG; did you mean"),
    (["--model.inner.help", "lustral.attacks.PDG"], "model.inner: lustral.attacks has no class PDG"),
    (["--model.inner", "lustral.atacks.PGD"], "model.inner: there is no module 'lustral.atacks', of which"),
    (
        ["--model.inner", f"{{class_path: {HERE}.Inner, init_args: {{sise: 3}}}}"],
        "model.inner: Inner has no option sise",
    ),
    (["--model.inner", "{sise: 3}"], "model.inner: Inner has no option sise"),
    (["--model.fixed.lo", "3"], "model.fixed: Fixed has no option lo; did you mean low?"),
    (["--model.fixed", "{lo: 3}"], "model.fixed: Fixed has no option lo; did you mean low?"),
    (["--model.several+", f"{HERE}.Innr"], f"model.several: {HERE} has no class Innr"),
    (["--model.maybe", f"{HERE}.Inner"], "model.maybe: Inner must be given size."),
    (["--model.inner", "null"], "model: Outer must be given inner."),
    (
        ["--model.make", f"{HERE}.Outer", "--model.make.inn", "3"],
        "model.make: Outer has no option inn; did you mean inner?",
    ),
    (
        ["--model.inner", "nowhere.yaml"],
        "the command line picks nowhere.yaml for model.inner, and there is no such file",
    ),
    (["--trainer.devicez", "3"], "trainer: Trainer has no option devicez; did you mean devices?"),
]


@pytest.mark.parametrize(("words", "told"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_is_wrong_is_told(words: list[str], told: str, recipe: Callable[..., str]) -> None:
    with pytest.raises(ValueError) as refused:
        check_choices(["test", "-c", recipe(inner=INNER), *words], TRAINER)
    assert str(refused.value).startswith(told)


def test_an_option_is_one_of_the_class_that_is_there(recipe: Callable[..., str]) -> None:
    whole = ("test", "-c", recipe(inner=INNER))
    other = recipe("other", inner={"class_path": f"{HERE}.Outer", "init_args": {"inner": INNER}})
    check_choices([*whole, "-c", other, "--model.inner.inner.size", "3"])
    check_choices([*whole, "--model.inner.size", "3", "-c", other])
    with pytest.raises(ValueError, match=r"^model.inner: Outer has no option size"):
        check_choices([*whole, "-c", other, "--model.inner.size", "3"])


def test_a_layer_that_only_changes_options_is_checked_too(recipe: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "layer.yaml").write_text("model:\n  init_args:\n    inner:\n      init_args:\n        sise: 3\n")
    with pytest.raises(ValueError, match=r"layer.yaml: Inner has no option sise; did you mean size\?"):
        check_choices(["test", "-c", recipe(inner=INNER), "-c", str(tmp_path / "layer.yaml")])
    (tmp_path / "layer.yaml").write_text("trainer:\n  devicez: 3\n")
    with pytest.raises(ValueError, match=r"layer.yaml: Trainer has no option devicez; did you mean devices\?"):
        check_choices(["test", "-c", recipe(inner=INNER), "-c", str(tmp_path / "layer.yaml")], TRAINER)


def test_what_must_be_given_is_told_with_the_option_that_gives_it(recipe: Callable[..., str]) -> None:
    with pytest.raises(ValueError) as refused:
        check_choices([*BASE, "--model.threat", "null"])
    assert str(refused.value) == (
        "model: RobustnessEvaluation must be given purifier, threat: --model.purifier configs/purifier/FILE.yaml "
        "--model.threat configs/threat/FILE.yaml."
    )
    with pytest.raises(ValueError, match=r"^model: Outer must be given inner.$"):
        check_choices(["test", "-c", recipe()])
    check_choices([*BASE, "--print_config"])
    check_choices([*BASE, "-h"])
    check_choices([*BASE, "--model.purifier.help"])
    check_choices([*BASE, "--model.purifier", "configs/purifier/digits_gnsp.yaml"])


def test_the_first_argument_of_an_optimiser_is_still_to_come() -> None:
    check_choices([*FIT, "--model.optimizer", "torch.optim.SGD", "--model.lr_scheduler.warmup", "0.1"])
    steps = ("--model.lr_scheduler", "torch.optim.lr_scheduler.MultiStepLR")
    with pytest.raises(ValueError, match=r"^model.lr_scheduler: MultiStepLR must be given milestones.$"):
        check_choices([*FIT, *steps])
    check_choices([*FIT, *steps, "--model.lr_scheduler.milestones", "[3]"])


def test_a_recipe_must_be_there() -> None:
    with pytest.raises(ValueError, match=r"^There is no recipe nowhere.yaml \(looked in .*\); see configs/train"):
        check_choices(["test", "-c", "nowhere.yaml"])
