"""What one image's record depends on, and what a fingerprint tells apart."""

import torch
from torch import Tensor

from lustral.attacks import PGD
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
        def run(self, x: Tensor, context: Context, noise: NoiseStream) -> Purified:
            seen.append(noise.path)
            return super().run(x, context, noise)

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
