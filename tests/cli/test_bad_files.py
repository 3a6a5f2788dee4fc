"""Damaged, foreign and hostile files end in one sentence that names the file, exit code 1 and no traceback."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lustral.networks import WideResNet
from lustral.networks.weights import architecture
from lustral.purifiers import Purifier

UNDEFENDED = "configs/eval/digits_undefended.yaml"
TRAINING = "configs/train/digits_classifier.yaml"


class _Returns(Purifier):
    """Returns whatever a test says."""

    returns: object = None

    def run(self, x, context, noise, wants):  # type: ignore[override]
        returns = type(self).returns
        return returns(x) if callable(returns) else returns


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def words(run: Path, digit_weights: dict[str, Path]) -> list[object]:
    return [
        *("test", "-c", UNDEFENDED, "--trainer.default_root_dir", run, "--trainer.accelerator", "cpu"),
        *("--model.classifier.weights", digit_weights["classifier"], "--data.num_test", "2"),
        *("--model.attack", "configs/attack/pgd20.yaml", "--model.attack.num_steps", "1"),
        *("--model.protocol.audit_images", "0", "--model.rows", "4"),
    ]


@pytest.fixture
def refused(cli: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one sentence that a command ends in."""

    def ask(*words: object) -> str:
        capsys.readouterr()
        assert cli(*words) == 1
        told = capsys.readouterr().err
        errors = [line for line in told.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert told.rstrip().endswith(errors[0]), "it has more than one line"
        assert "Traceback" not in told
        return errors[0]

    return ask


# Recipes ---------------------------------------------------------------------

RECIPES = [
    ("model: recipe.yaml\n", "leads back to itself"),
    ("a: &a [*a]\n", "an anchor in it holds itself"),
    (f"a: {'[' * 2000}{']' * 2000}\n", "nests too deeply"),
    ("trainer: [1]\n", "trainer is [1]"),
    ("data: 5\n", "data is 5"),
    ("model:\n  class_path: 3\n", "class_path of model is 3"),
    ("model:\n  class_path: lightning_modules.RobustnessEvaluation\n  init_args: [1]\n", "init_args of model is [1]"),
    ("model: nowhere.yaml\n", "there is no such file"),
    (b"\x00\x01\x80\xff", "no text file"),
    ("model:\n\tclass_path: x\n", "line 2"),
]


@pytest.mark.parametrize(("text", "told"), RECIPES, ids=[told for _, told in RECIPES])
def test_recipes(text: str | bytes, told: str, refused: Callable[..., str], tmp_path: Path, run: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(text if isinstance(text, bytes) else text.encode())
    error = refused("test", "-c", recipe, "--trainer.default_root_dir", run)
    assert str(recipe) in error
    assert told in error
    assert not run.exists()


# Weights ---------------------------------------------------------------------


def _weights(path: Path, record: object) -> Path:
    save_file(
        {"a": torch.zeros(2)}, path, metadata={"lustral": record if isinstance(record, str) else json.dumps(record)}
    )
    return path


_SMALL = architecture(WideResNet(10, 1, 10, 1, 8))["arguments"]
RECORDS = [
    ("{no json", "does not say in full"),
    ([1], "does not say in full"),
    ({"schema": 1, "arguments": {}}, "does not say in full"),
    ({"schema": 2, "builder": "WideResNet", "arguments": _SMALL}, "has schema 2, and this version of Lustral reads"),
    ({"schema": 1, "builder": "WideResNet", "arguments": [3]}, "names no network"),
    ({"schema": 1, "builder": "WideResNet", "arguments": {**_SMALL, "width": 1000000}}, "does not fit WideResNet"),
    ({"schema": 1, "builder": "WideResNet", "arguments": {**_SMALL, "depth": 600004}}, "more tensors than the file"),
    ({"schema": 1, "builder": "WideResNet", "arguments": {**_SMALL, "width": "x"}}, "cannot take"),
    ({"schema": 1, "builder": "WideResNet", "arguments": {**_SMALL, "width": -3}}, "cannot take"),
    ({"schema": 1, "builder": "WideResNet", "arguments": {**_SMALL, "weights": "other"}}, "weights of their own"),
]


@pytest.mark.parametrize(("record", "told"), RECORDS, ids=range(len(RECORDS)))
def test_weights(
    record: object, told: str, words: list[object], refused: Callable[..., str], tmp_path: Path, run: Path
) -> None:
    """A network is built without memory first: with a width of 1,000,000 it would take all there is."""
    path = _weights(tmp_path / "weights.safetensors", record)
    error = refused(*words, "--model.classifier.weights", path)
    assert str(path) in error
    assert told in error
    assert not (run / "records").exists()


# Checkpoints -----------------------------------------------------------------

WHOLE = {"state_dict": {"a": torch.zeros(1)}, "optimizer_states": [], "lr_schedulers": [], "epoch": 0, "global_step": 0}
CHECKPOINTS = [
    (b"", "damaged or no checkpoint"),
    (b"<html>", "damaged or no checkpoint"),
    ([1], "lacks state_dict"),
    ({"state_dict": {}}, "lacks optimizer_states"),
    ({**WHOLE, "state_dict": 3}, "no checkpoint of a training"),
    (WHOLE, "the checkpoint of another network"),
    (None, "There is no checkpoint"),
]


@pytest.mark.parametrize(("content", "told"), CHECKPOINTS, ids=[told for _, told in CHECKPOINTS])
def test_checkpoints(content: object, told: str, refused: Callable[..., str], tmp_path: Path, run: Path) -> None:
    path = tmp_path / "some.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    fit = ("fit", "-c", TRAINING, "--trainer.default_root_dir", run, "--trainer.accelerator", "cpu")
    error = refused(*fit, "--ckpt_path", path)
    assert str(path) in error
    assert told in error
    assert not run.exists()


def test_a_cut_checkpoint_is_told_and_an_evaluation_takes_none(
    words: list[object], refused: Callable[..., str], tmp_path: Path, run: Path
) -> None:
    path = tmp_path / "cut.ckpt"
    torch.save({**WHOLE, "state_dict": {"a": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    fit = ("fit", "-c", TRAINING, "--trainer.default_root_dir", run, "--trainer.accelerator", "cpu")
    assert f"{path} is damaged or no checkpoint" in refused(*fit, "--ckpt_path", path)
    assert "--model.classifier.weights" in refused(*words, "--ckpt_path", path)


# Records, costs, cards --------------------------------------------------------


def _change(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert re.search(before, text)
    path.write_text(re.sub(before, after, text, count=1))


DAMAGES = [
    ("records/*.jsonl", r'"label": \d', '"label": 10', "line 1 is no record as it was written"),
    ("records/fingerprint.json", '"seed": 0', '"seed": 7', "was changed since it was written"),
    ("provenance/*.json", r"[\s\S]*", "[]", "was damaged since it was written"),
]


def test_a_damaged_run_folder(
    words: list[object], refused: Callable[..., str], cli: Callable[..., int], run: Path
) -> None:
    assert cli(*words) == 0
    for pattern, before, after, told in DAMAGES:
        (path,) = [path for path in run.glob(pattern) if "test-" in path.name or "provenance" not in pattern][:1]
        whole = path.read_bytes()
        _change(path, before, after)
        damaged = path.read_bytes()
        error = refused(*words)
        assert str(path) in error
        assert told in error
        assert path.read_bytes() == damaged, "it was written to"
        path.write_bytes(whole)
    assert cli(*words) == 0


@pytest.mark.parametrize("damage", ["empty", "[]", "bytes", "status", "verdicts", "cost", "attack", "defence"])
def test_a_damaged_card(damage: str, refused: Callable[..., str], tmp_path: Path) -> None:
    rate = {"value": 0.5, "low": 0.4, "high": 0.6}
    card = {
        "schema": 1, "status": "ok", "n": 1, "indices": [0], "audit": {}, "data": {}, "fingerprint": "",
        "verdicts": {"one_shot": {"clean": rate, "robust": rate, "draws": 1, "aimed_at": True}},
        "cost": {"network_calls_per_image": 1, "seconds_per_image": 1, "peak_memory_mib": 1},
        "attack": {"class": "PGD", "threat": {"norm": "linf", "eps": "8/255"}}, "protocol": {"verdict_draws": 1},
        "defence": {"purifier": {"class": "Identity"}, "classifier": {"class": "WideResNet"}},
    }  # fmt: skip
    contents = {"empty": b"", "[]": b"[]", "bytes": b"\xff\xfe"}
    broken = json.dumps({**card, damage: {}} if damage != "status" else {**card, damage: None}).encode()
    path = tmp_path / "card.json"
    path.write_bytes(contents.get(damage, broken))
    assert str(path) in refused("report", tmp_path)


# Classes of one's own ---------------------------------------------------------

RETURNS = [
    (None, "returned nothing"),
    (lambda x: {}["oops"], "This looks like a bug of Lustral or of a class of yours: KeyError: 'oops'"),
]


@pytest.mark.parametrize(("returns", "told"), RETURNS, ids=range(len(RETURNS)))
def test_purifiers_of_ones_own(
    returns: object,
    told: str,
    words: list[object],
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_Returns, "returns", staticmethod(returns) if callable(returns) else returns)
    assert told in refused(*words, "--model.purifier", f"{__name__}._Returns")


def test_the_traceback_is_shown_on_demand(
    words: list[object], cli: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def oops(x: object) -> None:
        raise KeyError("oops")

    monkeypatch.setenv("LUSTRAL_TRACEBACK", "1")
    monkeypatch.setattr(_Returns, "returns", staticmethod(oops))
    with pytest.raises(KeyError, match="oops"):
        cli(*words, "--model.purifier", f"{__name__}._Returns")


# Words of the command line ----------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["--trainer.devices", "99999"], "cores"),
        (["--trainer.devices", "abc"], "trainer.devices is 'abc'"),
        (["--model.protocol", "null"], "must be given protocol: --model.protocol configs/protocol/FILE.yaml."),
        (["--data.num_test", "x"], "'x' is no int"),
        (["--trainer.callbacks", "nope"], "'nope' is no list"),
    ],
)
def test_words(extra: list[str], told: str, words: list[object], refused: Callable[..., str]) -> None:
    assert told in refused(*words, *extra)


def test_null_and_a_home_folder_are_understood(
    words: list[object],
    cli: Callable[..., int],
    digit_weights: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "w.safetensors").write_bytes(digit_weights["classifier"].read_bytes())
    at_home = ("--model.classifier.weights", "~/w.safetensors", "--trainer.default_root_dir", "~/home run")
    nulls = ("--model.attack.objective", "null", "--model.attack.surrogate", "null", "--data.test_subset", "null")
    assert cli(*words, *at_home, *nulls) == 0
    card = json.loads((tmp_path / "home run" / "card.json").read_text())
    assert card["attack"]["objective"]["class"] == "CrossEntropy"
    assert card["attack"]["surrogate"] is None
    (tmp_path / "subset.txt").write_text(str(card["indices"][1]))
    few = ("--data.num_test", "1", "--data.test_subset", "~/subset.txt")
    assert cli(*words, *at_home, *few, "--trainer.default_root_dir", "~/other") == 0
    assert json.loads((tmp_path / "other" / "card.json").read_text())["indices"] == card["indices"][1:]
    monkeypatch.setattr("lustral.reporting.command.write_report", lambda folders, output: [])
    assert cli("report", "~/home run", "--output", "~/told") == 0
