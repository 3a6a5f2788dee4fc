"""Every row of every table: it is built at its full size before toy networks, and each kind runs shrunk by `test`."""

import json
import re
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule, LightningModule

from lightning_modules import RobustnessEvaluation
from lustral.attacks import Attack
from lustral.choices import resets
from lustral.networks import WideResNet
from lustral.purifiers import Purifier, Variant
from lustral.ratio import parse_ratio
from lustral.tables import Choice, PaperTable, Row, fits, read_tables
from lustral.threat import ThreatModel
from tests.cli.evaluations import evaluate, fastest, num_judged
from tests.cli.full_size import PIXELS, built, network_calls
from tests.cli.shrunk import Shrinker, followed
from tests.contracts import images, stream

TABLES = read_tables("configs/tables")
COMPARED = ("data", "classifier", "purifier", "attack", "threat")


class Case(NamedTuple):
    """A row of a table, with the parts that it chooses."""

    table: PaperTable
    row: Row
    parts: dict[str, Any]

    def of(self, *names: str) -> str:
        """Some of its parts, to be compared: 5 and 5.0 are one number."""
        return json.dumps([_in_floats(self.parts[name]) for name in names], sort_keys=True)

    @property
    def classes(self) -> str:
        """Those of its purifier and of its attack, and of what they are made of, networks apart (every one is in some
        recipe's test); what is left are numbers."""
        return json.dumps([_classes(self.parts[name]) for name in ("purifier", "attack")])

    @property
    def files(self) -> tuple[Path, ...]:
        """Which purifier and attack it picks."""
        choice = self.row.choice
        return tuple(choice.groups.get(group, choice.recipe) for group in ("purifier", "attack"))


def _classes(value: Any) -> Any:
    if isinstance(value, dict):
        options = sorted((value.get("init_args") or {}).items())
        inner = [_classes(part) for name, part in options if name not in ("denoiser", "scorer")]
        return [value.get("class_path"), *(each for each in inner if each)]
    if isinstance(value, list):
        return [each for each in map(_classes, value) if each]
    return value if isinstance(value, str) and value.startswith("lustral.") else None


def _in_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _in_floats(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_in_floats(inner) for inner in value]
    return float(value) if type(value) is int else value


CASES = [Case(table, row, row.choice.parts()) for table in TABLES for row in table.rows]


def _each(cases: Iterable[Case]) -> list[Any]:
    return [pytest.param(case, id=f"{case.table.name}-{case.row.name}") for case in cases]


def _firsts(key: Callable[[Case], Hashable]) -> list[Any]:
    """A row of each kind."""
    return _each({key(case): case for case in reversed(CASES)}.values())


def _run() -> list[Any]:
    """A row of each combination of classes, and one of each table. That the others' files and numbers arrive is held
    by the tests that build them."""
    found = {case.classes: case for case in reversed(CASES)}
    tables = {case.table.name for case in found.values()}
    return _each([*found.values(), *(case for case in CASES if case.row.number == 1 and case.table.name not in tables)])


def test_no_table_is_empty_and_each_names_its_command() -> None:
    assert len(CASES) > 60
    for table in TABLES:
        path = f"configs/tables/{table.name}.yaml"
        assert f"python cli.py table {path}" in Path(path).read_text()


@pytest.mark.parametrize("case", _run())
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
    ensemble = {"attack": Path(options.pop("model.attack"))} if "model.attack" in options else {}
    chosen = Choice(
        row.choice.recipe, row.choice.layers, {**row.choice.groups, **ensemble}, {**row.choice.options, **options}
    )
    assert fits(chosen, card["provenance"]["config"])


@pytest.mark.parametrize("case", _firsts(lambda case: case.of("purifier", "attack")))
def test_the_defence_of_a_row_purifies_in_all_its_steps(case: Case) -> None:
    """Before a toy diffusion model; and the row's attack is built as it stands."""
    purifier, attack = built(case.parts["purifier"]), built(case.parts["attack"])
    assert isinstance(purifier, Purifier)
    purifier.bind(WideResNet(10, 1, image_size=PIXELS))
    assert isinstance(attack, Attack)
    size = purifier.group_size
    purified = purifier(images(size, (3, PIXELS, PIXELS)), stream(size), "detached").images
    assert purified.isfinite().all()
    surrogate = getattr(attack, "surrogate", None)
    if isinstance(surrogate, Variant):
        changed = {name.rpartition(".")[2] for name in surrogate.changes}
        if changed <= {"rounds", "num_steps", "layout", "compose", "resample", "eta", "allow_inert"}:
            assert network_calls(surrogate.of(purifier)) < network_calls(purifier)
        elif not changed <= {"route", "against"}:  # DAD's branches, and what a group is compared with
            assert changed <= {"guidance_gradient", "rounding"}
            assert network_calls(surrogate.of(purifier)) == network_calls(purifier)


def _resolved(words: list[str]) -> dict[str, Any]:
    """The configuration that the front door's parser makes of words, without the trainer's part."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("-c", "--config", action="config")
    parser.add_subclass_arguments(LightningModule, "model")
    parser.add_subclass_arguments(LightningDataModule, "data")
    return _plain(parser.parse_args([*words, *resets(["test", *words])]))


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        return {name: _plain(inner) for name, inner in vars(value).items() if name != "__path__"}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("case", _firsts(lambda case: (*case.files, *case.row.choice.options)))
def test_a_row_is_what_its_command_chooses_and_no_other_is(case: Case) -> None:
    config = _resolved(case.row.choice.words())
    assert config["model"]["class_path"].endswith(RobustnessEvaluation.__name__)
    for other in CASES:
        assert fits(other.row.choice, config) == (other.of(*COMPARED) == case.of(*COMPARED)), other.row


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
