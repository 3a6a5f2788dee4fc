"""Is the number to be believed? Attacks and statistics that must agree with it, and a plain word if they do not.

The checks follow Carlini et al. 2019 (arXiv 1902.06705), Tramer et al. 2020 (2002.08347) and Pintor et al. 2022
(2106.09947). A check never changes a number; it can only make a card suspect.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from lustral.attacks import Cases, Engine, Ensemble, FirstOrderAttack, RandomDirections
from lustral.attacks.base import Attack, Judged
from lustral.evaluation.attacked import zero_share
from lustral.evaluation.intervals import compare
from lustral.evaluation.records import Record
from lustral.evaluation.verdicts import Expected
from lustral.noise import NoiseStream
from lustral.purifiers import GradientMode, Identity, Purifier
from lustral.ratio import parse_ratio
from lustral.threat import ThreatModel

AUDIT = "audit: "
"""How the tasks of an audit are announced to whoever observes the engine."""
ZERO_GRADIENTS = 0.01
"""Largest share of the gradients of draws that are still right that may be zero everywhere."""
BLIND_GAIN = 0.01
"""Smallest share of the predicted rise of the loss that must really happen."""
LARGE_EPS_ACCURACY = 0.05
"""Largest accuracy that may be left when the budget allows every image."""


_WORDS = {"random_directions": "random directions", "bpda": "bpda", "double_eot": "twice the EOT draws"}


class KnownNoise:
    """A defence whose noise the attacker knows: whatever stream it is given, it uses the verdict's first draw."""

    def __init__(self, defence: Any, verdict: NoiseStream) -> None:
        self._defence, self._known, self._verdict = defence, verdict, verdict.repeat(1)
        self._index = verdict.index

    random = False

    @property
    def purifier(self) -> Purifier | None:
        """The defence's, if it has one."""
        return getattr(self._defence, "purifier", None)

    def with_purifier(self, purifier: Purifier) -> "KnownNoise":
        """The same noise for the defence with another purifier: an attack's surrogate knows it as well."""
        return KnownNoise(self._defence.with_purifier(purifier), self._known)

    def __call__(
        self,
        x: torch.Tensor,
        noise: NoiseStream,
        gradient: GradientMode = "exact",
        anchor: torch.Tensor | None = None,
    ) -> Judged:
        row = (noise.index[:, None] == self._index[None, :]).int().argmax(1)
        return self._defence(x, self._verdict.select(row), gradient, anchor)


def audit_cases(
    engine: Engine,
    attack: Attack,
    cases: Cases,
    threat: ThreatModel,
    noise: NoiseStream,
    verdict_draws: int,
    known_noise: bool,
) -> list[dict[str, float]]:
    """Run the audit's own attacks on ``cases``; one dictionary of accuracies (expected over draws) a case."""
    stream, observe = noise.fork("audit"), engine.observe
    engine = Engine(engine.defence, engine.rows, lambda task, step, steps: observe(AUDIT + task, step, steps))
    rule = Expected(verdict_draws)
    found: dict[str, torch.Tensor] = {}

    def accuracy(name: str, other: Attack, budget: ThreatModel) -> None:
        result = other(engine, cases, budget, stream.fork(name))
        logits = engine.logits(result.images, stream.fork(name, "verdict"), verdict_draws)
        found[name] = rule(logits, cases.labels).masked_fill(result.failed, 0.0)

    shape = tuple(cases.images.shape[1:])
    accuracy("random_directions", RandomDirections(), threat)
    members = _first_order(attack)
    if members and threat.budget > 0:
        purifier = getattr(engine.defence, "purifier", None)
        exact = [member for member in members if member.gradient == "exact"]
        if exact and not isinstance(purifier, (Identity, type(None))):
            objective = exact[0].objective.plain if exact[0].objective.needs else exact[0].objective
            accuracy("bpda", _changed(exact[0], gradient="bpda", objective=objective), threat)
        if any(member.eot > 1 for member in members) and engine.defence.random:
            accuracy("double_eot", _each(attack, lambda member: _changed(member, eot=2 * member.eot)), threat)
        for name, factor in (("double_eps", 2.0), ("large_eps", threat.largest(shape) / threat.budget)):
            larger = threat.scaled(factor, shape)
            accuracy(name, _each(attack, partial(_stepping, factor=larger.budget / threat.budget)), larger)
    if known_noise and engine.defence.random:
        verdict = noise.fork("verdict", "adversarial")
        known = Engine(KnownNoise(engine.defence, verdict), engine.rows, engine.observe)
        result = attack(known, cases, threat, stream.fork("known_noise"))
        judged = rule(known.logits(result.images, verdict, verdict_draws), cases.labels)
        found["known_noise"] = judged.masked_fill(result.failed, 0.0)
    return [{name: float(values[i]) for name, values in found.items()} for i in range(len(cases))]


def _first_order(attack: Attack) -> list[FirstOrderAttack]:
    """The attack itself or the members of an ensemble, those with gradients."""
    if isinstance(attack, Ensemble):
        return [found for member in attack.attacks for found in _first_order(member)]
    return [attack] if isinstance(attack, FirstOrderAttack) else []


def _each(attack: Attack, change: Callable[[FirstOrderAttack], FirstOrderAttack]) -> Attack:
    """The attack after ``change``; an ensemble is still one, of changed members."""
    if isinstance(attack, Ensemble):
        return Ensemble([_each(member, change) for member in attack.attacks], attack.selection_draws)
    return change(attack) if isinstance(attack, FirstOrderAttack) else attack


def _changed(attack: FirstOrderAttack, **options: Any) -> FirstOrderAttack:
    other = copy.copy(attack)
    for name, value in options.items():
        setattr(other, name, value)
    return other


def _stepping(attack: FirstOrderAttack, factor: float) -> FirstOrderAttack:
    """The same attack for a budget ``factor`` times as large: an explicit step size grows along, or the budget could
    not be used up."""
    step = getattr(attack, "step_size", None)
    return attack if step is None else _changed(attack, step_size=parse_ratio(step) * factor)


def audit_records(records: Sequence[Record], verdict_draws: int) -> tuple[dict[str, Any], list[str]]:
    """The audit's section of the card, and the reasons to suspect its numbers (none for a healthy run)."""
    report: dict[str, Any] = {}
    doubts: list[str] = []

    failed = [record.index for record in records if record.failed]
    report["failed_samples"] = failed
    if failed:
        doubts.append(f"{len(failed)} samples met NaN or Inf and count as broken (first: {failed[0]})")
    differentiated = [r.statistics for r in records if "zero_gradients" in r.statistics]  # failed samples have none
    zero = zero_share(differentiated)
    moved = [s for s in differentiated if s["predicted_gain"] > 0]
    if moved:
        gain = sum(s["loss_last"] - s["loss_first"] for s in moved) / len(moved)
        predicted = sum(s["predicted_gain"] for s in moved) / len(moved)
        report["zero_gradient_share"] = zero
        report["loss"] = {"mean_gain": gain, "predicted_gain": predicted, "gain_share": gain / predicted}
        if zero > ZERO_GRADIENTS:
            doubts.append(f"{100 * zero:.1f} % of the gradients are zero everywhere")
        if gain <= 0:
            doubts.append("the loss does not rise with the attack's steps")
        elif gain < BLIND_GAIN * predicted:
            doubts.append("the loss rises by less than 1 % of what its gradient predicts")
    elif zero > ZERO_GRADIENTS:
        report["zero_gradient_share"] = zero
        doubts.append(f"no gradient moved any image: {100 * zero:.1f} % of them are zero everywhere")

    audited = [record for record in records if record.audit]
    report["num_images"] = len(audited)
    if audited:
        rule = Expected(verdict_draws)
        attacked = [
            float(rule(r.adversarial_logits[:, None], torch.tensor([r.label]))[0]) if not r.failed else 0.0
            for r in audited
        ]
        names = list(audited[0].audit)
        report["expected_accuracy"] = {"attack": _mean(attacked)} | {
            name: _mean([r.audit[name] for r in audited]) for name in names
        }
        for name in ("random_directions", "bpda", "double_eot"):
            if name in names and compare([r.audit[name] for r in audited], attacked).verdict == "better":
                doubts.append(f"{_WORDS[name]} beats the attack on the audited images")
        if "large_eps" in names:
            doubts += _eps_doubts(report["expected_accuracy"])
    return report, doubts


def _eps_doubts(accuracy: dict[str, float]) -> list[str]:
    doubts = []
    if accuracy["large_eps"] > LARGE_EPS_ACCURACY:
        doubts.append(f"{100 * accuracy['large_eps']:.0f} % accuracy is left at a budget that allows every image")
    if accuracy["double_eps"] > accuracy["attack"] + 0.1:
        doubts.append("accuracy rises when the budget is doubled")
    return doubts


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
