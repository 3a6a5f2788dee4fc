"""What one image's record depends on, and what a fingerprint tells apart."""

import importlib
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lustral.attacks import PGD
from lustral.describe import describe, foreign_source
from lustral.evaluation import (
    Defence,
    Evaluator,
    Fingerprint,
)
from lustral.noise import NoiseStream
from lustral.purifiers import Context, Identity, Purified
from lustral.threat import ThreatModel
from tests.contracts import THREAT, NoisyPurifier, ToyClassifier, right_cases, toy_evaluator


def test_records_do_not_depend_on_the_batch() -> None:
    """Batches of 24 and 7, shuffled: the same records, bit for bit, audits included."""
    evaluator = toy_evaluator(NoisyPurifier(0.05), PGD(4, eot=2, selection_draws=4))
    chosen, audited = right_cases(24), torch.arange(24) < 5
    together = {record.index: record.to_json() for record in evaluator.evaluate(chosen, audited)}
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    apart = {}
    for rows in order.split(7):
        apart |= {record.index: record.to_json() for record in evaluator.evaluate(chosen.select(rows), audited[rows])}
    assert apart == together


def test_changes_that_decide_a_result_change_the_fingerprint() -> None:
    base = toy_evaluator(NoisyPurifier(0.05), PGD(4))
    others = [
        toy_evaluator(NoisyPurifier(0.06), PGD(4)),
        toy_evaluator(NoisyPurifier(0.05), PGD(5)),
        toy_evaluator(NoisyPurifier(0.05), PGD(4), ThreatModel("l2", "24/255")),
        toy_evaluator(NoisyPurifier(0.05), PGD(4), audit_images=9),
        toy_evaluator(Identity(), PGD(4)),
    ]
    rows = Evaluator(base.defence, base.attack, base.threat, base.protocol, 0, 32)
    seed = Evaluator(base.defence, base.attack, base.threat, base.protocol, 1, 16)
    weights = Evaluator(Defence(ToyClassifier(seed=0), NoisyPurifier(0.05)), PGD(4), THREAT, base.protocol, 0, 16)
    with torch.no_grad():
        weights.defence.classifier.get_parameter("conv.bias")[0] += 1e-3
    hashes = {Fingerprint(e.decides()).sha256 for e in (base, *others, rows, seed, weights)}
    assert len(hashes) == 9


def test_changes_that_decide_nothing_keep_the_fingerprint() -> None:
    one, two = (toy_evaluator(NoisyPurifier(0.05), PGD(4)) for _ in range(2))
    two.defence.purifier.graph_budget = 1e9
    two.defence.classifier.weights = "elsewhere/weights.safetensors"
    assert Fingerprint(one.decides()).sha256 == Fingerprint(two.decides()).sha256


def test_the_attack_and_both_verdicts_see_streams_of_their_own() -> None:
    """Every stream that a defence is asked with, by path: none is shared between two of the three tasks."""
    seen: list[tuple[str, ...]] = []

    class Watching(NoisyPurifier):
        def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
            seen.append(noise.path)
            return super().run(x, context, noise, wants)

    evaluator = toy_evaluator(Watching(0.05), PGD(2, selection_draws=2), audit_images=0)
    evaluator.evaluate(right_cases(8), torch.zeros(8, dtype=torch.bool))
    assert set(seen) == {
        ("memory",),
        ("verdict", "clean"),
        ("verdict", "adversarial"),
        ("attack", "PGD", "gradient"),
        ("attack", "PGD", "selection"),
    }


def test_a_ratio_and_its_number_are_one_fingerprint() -> None:
    one, other = (Fingerprint({"threat": {"eps": eps}}) for eps in ("8/255", 8 / 255))
    assert one.sha256 == other.sha256
    assert one.differences(other.decides) == []
    assert one.sha256 != Fingerprint({"threat": {"eps": "9/255"}}).sha256


USERS = """
from helper import strength
from lustral.purifiers import Purified, Purifier

class Mine(Purifier):
    random = False
    def run(self, x, context, noise, wants):
        return Purified(strength() * x[None])
"""


def test_the_source_of_a_class_from_outside_is_in_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edited purifier is another one, and so is one whose own helper was edited; the package's classes and those of
    installed packages are described as ever."""
    found, monkeypatch_path = [], monkeypatch.syspath_prepend
    for number, (purifier, helper) in enumerate(
        [(USERS, "0.9"), (USERS, "0.9"), (USERS + "# edited", "0.9"), (USERS, "0.8")]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "users.py").write_text(purifier)
        (folder / "helper.py").write_text(f"def strength(): return {helper}")
        monkeypatch_path(str(folder))
        for name in ("users", "helper"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        described = describe(importlib.import_module("users").Mine())
        assert described["module"] == "users"
        found.append(described["source_sha256"])
    assert found[0] == found[1]
    assert len(set(found)) == 3
    for name in ("users", "helper"):
        monkeypatch.delitem(sys.modules, name)
    assert describe(Identity()) == {"class": "Identity", "module": "lustral.purifiers.identity"}
    assert foreign_source(torch.nn.Linear) == foreign_source(dict) == {}


def test_a_class_typed_into_a_session_is_told_by_its_code() -> None:
    found = []
    for strength in ("0.9", "0.9", "0.8"):
        names: dict[str, type] = {}
        exec(
            USERS.replace("from helper import strength", "").replace("strength()", strength),
            {"__name__": "__main__"},
            names,
        )
        found.append(foreign_source(names["Mine"]))
    assert found[0]["source"] == "unknown"
    assert found[0] == found[1] != found[2]
