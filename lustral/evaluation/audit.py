"""The audit of a run: probes (further attacks) on some of its images, and their results. It changes no robust number.

The images found by all probes are judged on the same draws, which are used for nothing else, so that results can be
compared image by image. `lustral.evaluation.doubts` interprets them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lustral.attacks import Attack, Cases, Engine, GradientAttack, Judged, Margin, gradient_attacks
from lustral.attacks.objectives import margin
from lustral.attacks.victim import group_size, group_sum, whole_groups
from lustral.diffusion import Context
from lustral.evaluation.probes import Plan
from lustral.evaluation.verdicts import Expected
from lustral.noise import NoiseStream
from lustral.purifiers import GradientMode, Purifier, Variant
from lustral.rows import Runtime
from lustral.threat import ThreatModel

AUDIT = "audit: "
"""The prefix of the names under which an audit's tasks are reported to the engine's observer."""
ATTACK, KNOWN_ATTACK = "attack", "attack_known_noise"
"""Names of the margins of the run's own adversarial images, on the audit's draws and on the verdict's first draw, which
the probe "known_noise" knows."""
PREDICTED, ACTUAL = "predicted", "actual"
_LOOK_DRAWS = 8


@dataclass
class Audited:
    """What an audit measured on one image.

    Attributes:
        accuracy: for each probe, the share of the audit's draws that are classified correctly.
        margins: for each probe, the margin (largest wrong logit minus true one) of every draw; also for the run's own
            adversarial image. A probe that met NaN or Inf has no margins, and an accuracy of 0.
        steps: "predicted" and "actual" change of the margin over a step along the attack's gradient, one value for each
            point at which a step was tried.
    """

    accuracy: dict[str, float] = field(default_factory=dict)
    margins: dict[str, list[float]] = field(default_factory=dict)
    steps: dict[str, list[float]] = field(default_factory=dict)


class KnownNoise:
    """A defence whose noise the attacker knows: whatever stream is passed in, it uses the verdict's first draw."""

    def __init__(self, defence: Any, verdict: NoiseStream) -> None:
        self._defence, self._known, self._verdict = defence, verdict, verdict.repeat(1)
        self._index = verdict.index

    random = False

    @property
    def purifier(self) -> Purifier | None:
        """The defence's purifier, None if it has none."""
        return getattr(self._defence, "purifier", None)

    @property
    def group_size(self) -> int:
        return group_size(self._defence)

    @property
    def runtime(self) -> Runtime:
        return self._defence.runtime

    @runtime.setter
    def runtime(self, runtime: Runtime) -> None:
        self._defence.runtime = runtime

    def with_purifier(self, purifier: Purifier | Variant) -> "KnownNoise":
        """The defence with another purifier and the same known noise, so that an attack's surrogate uses it too."""
        return KnownNoise(self._defence.with_purifier(purifier), self._known)

    def __call__(
        self,
        x: Tensor,
        noise: NoiseStream,
        gradient: GradientMode = "exact",
        context: Context | None = None,
        wants: Collection[str] = frozenset(),
    ) -> Judged:
        return self._defence(x, self._stream(noise), gradient, context, wants)

    def prepare(self, x: Tensor, noise: NoiseStream) -> Context:
        """The context of images ``x`` (B, C, H, W) with the verdict's noise."""
        return self._defence.prepare(x, self._stream(noise))

    def _stream(self, noise: NoiseStream) -> NoiseStream:
        return self._verdict.select((noise.index[:, None] == self._index[None, :]).int().argmax(1))


def audited_indices(indices: Collection[int], count: int, seed: int, size: int = 1) -> list[int]:
    """The ``count`` of ``indices`` that are audited, ascending: those with the smallest keyed random numbers.

    If images are judged in groups of ``size`` (contiguous in ``indices``), whole groups are chosen, by the smallest
    number among their images, until they have ``count`` images or a few more.

    An image's random number depends on the seed and the image alone. So every process chooses the same images, they are
    a random sample of the test set, and an image that is audited in a larger test set is audited in every subset that
    contains it: a run that is extended needs no further audits of images that it has already judged.
    """
    index = torch.tensor(sorted(set(indices)) if size == 1 else list(indices), dtype=torch.int64)
    if not len(index) or count < 1:
        return []
    number = NoiseStream(seed, index).fork("audited").uniform((1,), dtype=torch.float64)[:, 0]
    groups = number.view(-1, size).amin(1).argsort(stable=True)[: -(-count // size)]
    return sorted(index.view(-1, size)[groups].flatten().tolist())


def audit_cases(
    engine: Engine,
    plan: Plan,
    attack: Attack,
    found: Tensor,
    cases: Cases,
    threat: ThreatModel,
    noise: NoiseStream,
    verdict_draws: int,
) -> list[Audited]:
    """Run the probes of ``plan`` on ``cases``, for which ``attack`` found the images ``found`` (B, C, H, W); one
    `Audited` for each case. ``noise`` is the run's stream of the cases, B rows."""
    stream, observe = noise.fork("audit"), engine.observe
    engine = engine.observed(lambda task, step, steps: observe(AUDIT + task, step, steps))
    verdict = noise.fork("verdict", "adversarial")
    known = engine.on(KnownNoise(engine.defence, verdict))
    audited, rule = [Audited() for _ in range(len(cases))], Expected(verdict_draws)

    def judge(images: Tensor, with_known_noise: bool = False) -> Tensor:
        asked, draws = (known, verdict) if with_known_noise else (engine, stream.fork("verdict"))
        return asked.logits(images, draws, verdict_draws)

    def keep(name: str, logits: Tensor, failed: Tensor | None = None) -> None:
        margins = margin(logits, cases.labels)
        if not engine.defence.random or name in (KNOWN_ATTACK, "known_noise"):
            margins = margins[:1]  # all draws are equal
        bad = ~logits.isfinite().all(-1).all(0)
        bad = bad if failed is None else bad | failed
        right = rule(logits, cases.labels).masked_fill(bad, 0.0).tolist()
        for i, each in enumerate(audited):
            if name not in (ATTACK, KNOWN_ATTACK):
                each.accuracy[name] = right[i]
            if not bad[i]:
                each.margins[name] = margins[:, i].tolist()

    own = judge(found)
    keep(ATTACK, own)
    open_rows = torch.ones_like(cases.labels, dtype=torch.bool)
    if not engine.defence.random:
        open_rows = ~whole_groups(rule(own, cases.labels) == 0, engine.group_size, cases.aim)
    for probe in plan.probes:
        if probe.known_noise:
            keep(KNOWN_ATTACK, judge(found, True))
        rows = (open_rows if probe.continues else torch.ones_like(open_rows)).nonzero().flatten()
        images, failed = found.clone(), torch.zeros_like(open_rows)
        if len(rows):
            asked = known if probe.known_noise else engine
            some = probe.attack(asked, cases.select(rows), probe.threat, stream.fork(probe.name).select(rows))
            images[rows], failed[rows] = some.images, some.failed
        keep(probe.name, judge(images, probe.known_noise), failed)
    if threat.budget > 0:
        _look_ahead(engine, attack, cases, threat, stream.fork("steps"), audited)
    return audited


def _look_ahead(
    engine: Engine, attack: Attack, cases: Cases, threat: ThreatModel, noise: NoiseStream, audited: Sequence[Audited]
) -> None:
    """Compare the change of the margin over a step along the attack's gradient with the change that the gradient
    predicts, at the image and at a random point of the threat set.

    The step goes from half a step behind the point to half a step ahead of it; all margins are on the same draws.
    """
    members = gradient_attacks(attack)
    if not members:
        return
    member = next((each for each in members if each.gradient == "exact" and each.sees_the_defence), members[0])
    source, objective = member.source(engine), Margin()
    held = cases.images if member.context == "clean" else None
    points = (cases.images, cases.confined(threat.random_point(cases.images, noise.fork("start"))))
    for number, point in enumerate(points):
        draws = noise.at(iteration=number)
        looks = min(max(member.eot, 1), _LOOK_DRAWS) if engine.defence.random else 1
        answer = source.answer(point, cases.labels, draws, objective, looks, member.gradient, clean=held, aim=cases.aim)
        step = 0.5 * _step_length(member, threat) * threat.ascent_direction(answer.gradient)
        ahead, behind = (cases.confined((point + sign * step).clamp(*threat.bounds)) for sign in (1, -1))
        predicted = (answer.gradient.double() * (ahead - behind).double()).flatten(1).sum(1)
        after, before = (
            margin(engine.logits(images, draws, looks), cases.labels).double().mean(0) for images in (ahead, behind)
        )
        size = engine.group_size  # a step at one image changes the margins of its whole group
        predicted = group_sum(predicted, size, None)
        after, before = (group_sum(margins, size, cases.aim) for margins in (after, before))
        for i, each in enumerate(audited):
            if bool((after - before)[i].isfinite()) and bool(predicted[i].isfinite()):
                each.steps.setdefault(PREDICTED, []).append(float(predicted[i]))
                each.steps.setdefault(ACTUAL, []).append(float((after - before)[i]))


def _step_length(member: GradientAttack, threat: ThreatModel) -> float:
    """The attack's own step size, at most the budget; an eighth of the budget for an attack without one."""
    own = getattr(member, "step_length", None)
    return min(own(threat), threat.budget) if own is not None else threat.budget / 8
