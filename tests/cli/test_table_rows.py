"""Every row of every table.

All are built at their full size before toy networks. Each combination of classes and each purifier is attacked
in few steps. And so many rows run shrunk by `test` that, with the recipes in `test_recipes.py`, every chain of classes
of a purifier, of an attack and of data is among them.
"""

import json
import re
from collections.abc import Callable, Hashable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from lightning_modules import RobustnessEvaluation
from lustral.attacks import Attack, Cases, Engine
from lustral.defence import Defence
from lustral.networks import Classifier, TimmClassifier, WideResNet
from lustral.purifiers import CMAP, Chain, Purifier, Variant
from lustral.ratio import parse_ratio
from lustral.tables import Choice, PaperTable, Row, fits, read_tables
from lustral.tables.choice import GROUPS
from lustral.threat import ThreatModel
from tests.cli.evaluations import ATTACKED as RECIPES
from tests.cli.evaluations import FASTEST_ATTACK, evaluate, fastest, num_judged
from tests.cli.full_size import PIXELS, built, network_calls
from tests.cli.parsed import resolved
from tests.cli.shrunk import Shrinker, attacks, classes, fewer, followed, purifier_of
from tests.contracts import images, stream

TABLES = read_tables("configs/tables")
FEWER_CALLS = {"rounds", "num_steps", "layout", "compose", "resample", "eta", "allow_inert", "t_large", "t_small"}
"""What surrogates change to be cheaper."""
COMPARED = ("data", "classifier", "purifier", "attack", "threat", "merge")


class Case(NamedTuple):
    """A row of a table, with the parts that it chooses."""

    table: PaperTable
    row: Row
    parts: dict[str, Any]

    def of(self, *names: str) -> str:
        """Some of its parts, to be compared: 5 and 5.0 are one number, and how many images are tested is no matter."""
        parts = {
            **self.parts,
            "data": {**self.parts["data"], "init_args": dict(self.parts["data"].get("init_args") or {})},
        }
        parts["data"]["init_args"].pop("num_test", None)
        return json.dumps([_in_floats(parts.get(name)) for name in names], sort_keys=True)

    def classes(self, name: str) -> str:
        """Those of its purifier or of its attack, and of what that is made of."""
        return classes(self.parts[name])

    def file(self, group: str) -> Path:
        """Which of a group it picks."""
        return self.row.choice.groups.get(group, self.row.choice.recipe).resolve()


def _class(part: Any) -> str:
    return part["class_path"] if isinstance(part, dict) else str(part)


def _in_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _in_floats(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_in_floats(inner) for inner in value]
    return float(value) if type(value) is int else value


def _parts(row: Row) -> dict[str, Any]:
    return {**row.choice.parts(), "merge": row.choice.options.get("model.merge")}


CASES = [Case(table, row, _parts(row)) for table in TABLES for row in table.rows]


def _each(cases: Iterable[Case]) -> list[Any]:
    return [pytest.param(case, id=f"{case.table.name}-{case.row.name}") for case in cases]


def _firsts(key: Callable[[Case], Hashable]) -> list[Any]:
    """A row of each kind."""
    return _each({key(case): case for case in reversed(CASES)}.values())


def _cover(*keys: Callable[[Case], Hashable]) -> list[Case]:
    """A few rows that together have every value of every key."""
    of = [{(number, key(case)) for number, key in enumerate(keys)} for case in CASES]
    missing, found = set[Any]().union(*of), list[int]()
    while missing:
        found.append(max(range(len(CASES)), key=lambda n: len(of[n] & missing)))
        missing -= of[found[-1]]
    return [CASES[number] for number in sorted(found)]


def _kinds(parts: dict[str, Any]) -> set[Hashable]:
    """What of an evaluation must go through the front door: the classes of its purifier and of its attack, each member
    of an ensemble by itself, its data with its classifier, and its norm."""
    made = {("attack", each) for each in attacks(parts["attack"])} | {("purifier", classes(parts["purifier"]))}
    return made | {("norm", parts["threat"]["norm"]), (_class(parts["data"]), _class(parts["classifier"]))}


def _run() -> list[Case]:
    """A few rows, those of the digits rather than others and single attacks rather than ensembles, that together have
    every kind which no recipe has."""
    of = [_kinds(case.parts) for case in CASES]
    price = [
        (1.0 if "Digits" in _class(case.parts["data"]) else 1.4) + 0.1 * len(of[n]) for n, case in enumerate(CASES)
    ]
    missing, found = set[Hashable]().union(*of) - RUN_BY_RECIPES, list[int]()
    while missing:
        found.append(max(range(len(CASES)), key=lambda n: len(of[n] & missing) / price[n]))
        missing -= of[found[-1]]
    return [CASES[number] for number in sorted(found)]


RUN_BY_RECIPES = set[Hashable]().union(*(_kinds(purifier_of(path).parts()) for path in RECIPES))
RUN = _run()
ATTACKED = _cover(lambda case: (case.classes("purifier"), case.classes("attack")), lambda case: case.file("purifier"))
PARSED = _cover(
    *(lambda case, group=group: case.file(group) for group in GROUPS),
    lambda case: (case.row.choice.recipe, case.row.choice.layers),
    lambda case: (case.classes("purifier"), *case.row.choice.options),
)


def test_no_table_is_empty_and_each_names_its_command() -> None:
    assert len(CASES) > 60
    for table in TABLES:
        path = f"configs/tables/{table.name}.yaml"
        assert f"python cli.py table {path}" in Path(path).read_text()


def test_every_class_and_every_purifier_and_attack_of_a_table_is_run() -> None:
    """Those that no table picks run in `test_recipes.py`, and every file of an attack in `test_attack_configs.py`."""
    run = [case.parts for case in RUN] + [purifier_of(path).parts() for path in RECIPES]
    for group in ("purifier", "attack", "data"):
        assert _named([parts[group] for parts in run]) >= _named([case.parts[group] for case in CASES])
    kinds = set[Hashable]().union(*map(_kinds, run))  # chains of classes, and each member of an ensemble
    for case in CASES:
        assert _kinds(case.parts) <= kinds, case.row
    combinations = {(case.classes("purifier"), case.classes("attack")) for case in CASES}
    assert {(case.classes("purifier"), case.classes("attack")) for case in ATTACKED} == combinations
    assert {case.file("purifier") for case in ATTACKED} == {case.file("purifier") for case in CASES}
    for group in GROUPS:
        assert {case.file(group) for case in PARSED} == {case.file(group) for case in CASES}


def _named(value: Any) -> set[str]:
    """The classes of parts, networks and all."""
    if isinstance(value, (dict, list)):
        return set[str]().union(*map(_named, value.values() if isinstance(value, dict) else value))
    return {value} if isinstance(value, str) and value.startswith(("lustral.", "datamodules.")) else set()


@pytest.mark.parametrize("case", _each(RUN))
@pytest.mark.usefixtures("brief_check")
def test_a_row_of_each_kind_runs(case: Case, cli: Callable[..., int], tmp_path: Path, shrinker: Shrinker) -> None:
    """And is known again by its card."""
    row = case.row
    small = fastest(shrinker, row.choice, tmp_path / "attack")
    evaluate(cli, "test", tmp_path / "run", *row.choice.words(), *small)
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert card["n"] == num_judged(row.choice)
    assert card["verdicts"]["one_shot"]["robust"]["value"] * card["n"] in range(card["n"] + 1)
    if "surrogate" in row.attack:
        assert card["attack"]["surrogate"]
        assert "not the gradient" in card["status"]
    options = {option[2:]: yaml.safe_load(value) for option, value in zip(small[::2], small[1::2], strict=True)}
    made = ("purifier", "attack")  # a chain, an ensemble: files of their own
    files = {name: Path(options.pop(f"model.{name}")) for name in made if f"model.{name}" in options}
    chosen = Choice(
        row.choice.recipe, row.choice.layers, {**row.choice.groups, **files}, {**row.choice.options, **options}
    )
    assert fits(chosen, card["provenance"]["config"])


def _victim(case: Case) -> Classifier:
    """A small classifier with the stages that a mask of the row looks at."""
    residual = "layer1" in case.of("purifier")
    return (TimmClassifier("resnet10t", image_size=PIXELS) if residual else WideResNet(10, 1, image_size=PIXELS)).eval()


@pytest.mark.parametrize("case", _each(ATTACKED))
def test_a_defence_and_an_attack_of_each_kind_run(case: Case) -> None:
    """In few steps, before toy networks."""
    purifier = built(fewer(case.parts["purifier"], num_times=2, group_size=2))
    attack = built(fewer(case.parts["attack"], num_targets=1, **FASTEST_ATTACK))
    defence = Defence(_victim(case), purifier).eval().requires_grad_(False)
    size = purifier.group_size
    x, noise, threat = images(size, (3, PIXELS, PIXELS)), stream(size), ThreatModel(**case.parts["threat"])
    result = attack(
        Engine(defence, 2), Cases(x, defence(x, noise, "detached").logits.argmax(-1), noise.index), threat, noise
    )
    assert not result.failed.any()
    assert result.images.isfinite().all()
    assert (result.distance <= parse_ratio(threat.eps) * (1 + 1e-4)).all()


@pytest.mark.parametrize("case", _firsts(lambda case: case.of("purifier")))
def test_the_defence_of_a_row_purifies_in_all_its_steps(case: Case) -> None:
    """Before a toy diffusion model."""
    purifier = built(case.parts["purifier"])
    assert isinstance(purifier, Purifier)
    purifier = _shortened(purifier)
    purifier.bind(_victim(case))
    size = purifier.group_size
    purified = purifier(images(size, (3, PIXELS, PIXELS)), stream(size), "detached").images
    assert purified.isfinite().all()


@pytest.mark.parametrize("case", _firsts(lambda case: case.of("purifier", "attack")))
def test_the_attack_of_a_row_is_built_and_a_surrogate_is_cheaper_than_the_defence(case: Case) -> None:
    purifier, attack = built(case.parts["purifier"]), built(case.parts["attack"])
    purifier.bind(_victim(case))
    assert isinstance(attack, Attack)
    surrogate = getattr(attack, "surrogate", None)
    if isinstance(surrogate, Variant) and "latents" in attack.carry:  # type: ignore[attr-defined]
        assert surrogate.of(purifier).holds == {"latents"}
    elif isinstance(surrogate, Variant):
        changed = {name.rpartition(".")[2] for name in surrogate.changes}
        if changed <= FEWER_CALLS:
            assert network_calls(surrogate.of(purifier)) < network_calls(purifier)
        elif not changed <= {"route", "against"}:  # DAD's branches, and what a group is compared with
            assert changed <= {"guidance_gradient", "rounding"}
            assert network_calls(surrogate.of(purifier)) == network_calls(purifier)


def _shortened(purifier: Purifier) -> Purifier:
    """The optimisation of latents in 2 steps: all of them are alike."""
    if isinstance(purifier, CMAP):
        return Variant({"num_steps": 2}).of(purifier)
    parts = purifier.purifiers if isinstance(purifier, Chain) else []
    changes = {f"purifiers.{k}.num_steps": 2 for k, part in enumerate(parts) if isinstance(part, CMAP)}
    return Variant(changes).of(purifier) if changes else purifier


@cache
def _compared() -> list[str]:
    """Of every row, what tells it from others."""
    return [case.of(*COMPARED) for case in CASES]


@pytest.mark.parametrize("case", _each(PARSED))
def test_a_row_is_what_its_command_chooses_and_no_other_is(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {id(other.row.choice): other.parts for other in CASES}
    monkeypatch.setattr(Choice, "parts", lambda choice: known[id(choice)])  # nobody changes them
    config = resolved(case.row.choice.words())
    assert config["model"]["class_path"].endswith(RobustnessEvaluation.__name__)
    compared = _compared()
    own = case.of(*COMPARED)
    for other, its in zip(CASES, compared, strict=True):
        assert fits(other.row.choice, config) == (its == own), other.row


VICTIMS = {
    "WRN-28-10": "wrn28-10",
    "WRN-70-16": "wrn70-16",
    "ResNet-50": "resnet50",
    "WRN-50-2": "wide_resnet50_2",
    "DeiT-S": "deit_small",
}


@pytest.mark.parametrize("case", _each(CASES))
def test_the_words_of_a_row_are_those_of_its_parts(case: Case) -> None:
    row, parts = case.row, case.parts
    norm, _, eps = row.threat.partition(" ")
    threat = ThreatModel(**parts["threat"])
    assert (norm, parse_ratio(eps)) == (threat.norm, parse_ratio(threat.eps))
    data = parts["data"]["class_path"].rpartition(".")[2].lower()
    assert re.sub(r"\W", "", row.dataset.partition(" (")[0]).lower().endswith(data)
    victim = Path(parts["classifier"]["init_args"]["weights"]).stem
    if row.classifier in VICTIMS and victim != "weights":
        assert victim.endswith(f"_{VICTIMS[row.classifier]}")
    if "surrogate" in row.attack:
        assert parts["attack"]["init_args"]["surrogate"]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_table_needs_the_references_of_its_rows(table: PaperTable) -> None:
    purifiers = [case.parts["purifier"].get("init_args") or {} for case in CASES if case.table is table]
    files = {given["reference"]["init_args"]["file"] for given in purifiers if "reference" in given}
    assert files <= table.needs.keys()
    for command in table.needs.values():
        stage, option, recipe = command.split()[:3]
        assert (stage, option) in (("validate", "-c"), ("fit", "-c"))
        assert Path(recipe).is_file()


SSNI = sorted(Path("configs/purifier").glob("*ssni*.yaml"))


@pytest.mark.parametrize("path", SSNI, ids=lambda path: path.stem)
def test_a_reference_is_of_what_scores_and_of_its_statistic(path: Path) -> None:
    """The purifier's denoiser scores, or another."""
    purifier = followed(path)["init_args"]
    file = Path(purifier["reference"]["init_args"]["file"])
    made = followed(Path("configs/reference") / f"{file.parent.name}.yaml")["model"]["init_args"]
    assert purifier.get("scorer", purifier["purifier"]["init_args"]["denoiser"]) == made["denoiser"]
    assert purifier["statistic"] == made["statistic"]
