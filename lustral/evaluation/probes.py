"""The audit's probes: which further attacks check a run's robust number, and which are skipped.

After Carlini et al. 2019 (arXiv 1902.06705), Tramer et al. 2020 (2002.08347), Croce et al. 2020 (2003.01690) and Pintor
et al. 2022 (2106.09947). `lustral.evaluation.doubts` interprets the results.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lustral.attacks import (
    APGD,
    PGD,
    APGDTargeted,
    Attack,
    DifferenceOfLogitsRatio,
    Ensemble,
    FirstOrderAttack,
    GradientAttack,
    Margin,
    RandomDirections,
    Square,
    gradient_attacks,
)
from lustral.describe import arguments, describe, rebuilt
from lustral.purifiers import GradientMode, Identity, Purifier
from lustral.ratio import parse_ratio
from lustral.threat import ThreatModel


@dataclass(frozen=True)
class Effort:
    """The effort of the audit's own attacks.

    Attributes:
        steps: gradient steps of the house's attack on a deterministic defence, for each of its losses and targets.
        random_steps: gradient steps of the house's attack on a random defence.
        eot: draws that its gradients are averaged over on a random defence.
        queries: iterations of Square on a deterministic defence.
        random_queries: iterations of Square on a random defence.
        query_eot: draws that its losses are averaged over on a random defence.
    """

    steps: int = 50
    random_steps: int = 20
    eot: int = 8
    queries: int = 500
    random_queries: int = 100
    query_eot: int = 4


EFFORT = Effort()
_SELECTION = 16


@dataclass(frozen=True)
class Probe:
    """One attack of the audit.

    Attributes:
        name: the name of its results in records and on the card.
        attack: the attack that is run on the audited images.
        threat: its threat model.
        known_noise: whether the attacker knows the verdict's noise.
        continues: whether images of a deterministic defence that the run's attack has broken are skipped, since they
            count as broken anyway.
    """

    name: str
    attack: Attack
    threat: ThreatModel
    known_noise: bool = False
    continues: bool = True


@dataclass(frozen=True)
class Plan:
    """The probes of a run's audit.

    Attributes:
        probes: the probes, in order.
        skipped: the probes that are left out, by name, with the reason.
        reach: the distance that the run's attack can cover, in units of eps; None if its step sizes are not fixed.
    """

    probes: list[Probe] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    reach: float | None = None

    def described(self) -> dict[str, Any]:
        """The plan as plain data, for the fingerprint and the card."""
        asked = {probe.name: describe(probe.attack) for probe in self.probes if probe.name in _OF_THE_HOUSE}
        return {
            "asked": [probe.name for probe in self.probes],
            "house": asked,
            "skipped": self.skipped,
            "reach": self.reach,
        }


_OF_THE_HOUSE = ("house", "bpda", "square", "random_directions")


def house_attack(random: bool, num_classes: int, gradient: GradientMode = "exact") -> Attack:
    """The house's attack: the default attack of Lustral, with which every other attack is compared.

    On a deterministic defence: APGD on the cross-entropy, then on the targeted DLR loss for up to 9 targets, the first
    two members of AutoAttack (on the DLR loss with 3 classes, on the margin with 2). On a random defence: PGD with 20
    steps on the mean cross-entropy over 8 draws.
    """
    if random:
        return PGD(EFFORT.random_steps, eot=EFFORT.eot, gradient=gradient, selection_draws=_SELECTION)
    first = APGD(EFFORT.steps, gradient=gradient)
    if num_classes >= 4:
        return Ensemble([first, APGDTargeted(EFFORT.steps, min(9, num_classes - 1), gradient=gradient)])
    objective = DifferenceOfLogitsRatio() if num_classes == 3 else Margin()
    return Ensemble([first, APGD(EFFORT.steps, objective=objective, gradient=gradient)])


def make_plan(
    attack: Attack,
    purifier: Purifier | None,
    random: bool,
    num_classes: int,
    threat: ThreatModel,
    shape: tuple[int, ...],
    known_noise: bool,
) -> Plan:
    """The probes of a run with ``attack`` on a defence with ``purifier``, for images of ``shape`` (C, H, W).

    Args:
        attack: the run's attack.
        purifier: the defence's purifier; None if it has none.
        random: whether the defence is random.
        num_classes: of the classifier.
        threat: the run's threat model.
        shape: (C, H, W) of the images.
        known_noise: whether the protocol asks for the probe "known_noise".
    """
    probes, skipped = [Probe("random_directions", RandomDirections(), threat, continues=False)], {}
    undefended = isinstance(purifier, (Identity, type(None)))
    members = gradient_attacks(attack)

    def ask(name: str, reason: str | None, make: Callable[[], Attack], budget: ThreatModel = threat, **options: Any):
        if threat.budget == 0:
            reason = "the budget is 0"
        if reason is None:
            probes.append(Probe(name, make(), budget, **options))
        else:
            skipped[name] = reason

    modes: tuple[str, ...] = ("exact",) if purifier is None else purifier.gradient_modes
    direct = each(attack, lambda member: on_the_defence(member, modes))
    house = partial(house_attack, random, num_classes)
    offered = None if "exact" in modes else f"{type(purifier).__name__} offers no exact gradient"
    ask("house", offered or (_same(attack, house()) and "it is the run's attack") or None, house)
    deterministic = None if random else "the defence draws no noise"
    ask("bpda", "there is no purifier" if undefended else _lacks("bpda", modes), lambda: house("bpda"))
    queries, eot = (EFFORT.random_queries, EFFORT.query_eot) if random else (EFFORT.queries, 1)
    ask("square", None, lambda: Square(queries, eot=eot, selection_draws=_SELECTION))
    stepped = None if _changes(attack, twice_the_steps) else "the attack takes no steps"
    ask("double_steps", stepped, lambda: each(direct, twice_the_steps))
    drawn = deterministic or (None if _changes(attack, twice_the_draws) else "the attack averages no draws")
    ask("double_eot", drawn, lambda: each(direct, twice_the_draws))
    for name, factor in (("double_eps", 2.0), ("large_eps", threat.largest(shape) / max(threat.budget, 1e-30))):
        larger = threat.scaled(factor, shape)
        reason = None if members else "the attack follows no gradients"
        change = partial(for_a_larger_budget, factor=larger.budget / max(threat.budget, 1e-30), larger=larger)
        ask(name, reason, partial(each, direct, change), larger, continues=False)
    if deterministic or not known_noise:
        skipped["known_noise"] = deterministic or "protocol.known_noise is false"
    else:
        probes.append(Probe("known_noise", direct, threat, known_noise=True, continues=False))
    return Plan(probes, skipped, reach(attack, threat))


def _lacks(mode: str, modes: tuple[str, ...]) -> str | None:
    return None if mode in modes else f"the purifier offers no gradient {mode!r}"


def _same(attack: Attack, house: Attack) -> bool:
    """Whether a run's attack is the house's attack, or an ensemble with all its members."""
    if describe(attack) == describe(house):
        return True
    if type(attack) is not Ensemble:  # a subclass may use its members' images in other ways
        return False
    own = [describe(member) for member in attack.attacks]
    wanted = house.attacks if isinstance(house, Ensemble) else [house]
    return all(describe(member) in own for member in wanted)


# Attacks that differ from the run's ------------------------------------------------------------


def each(attack: Attack, change: Callable[[Attack], Attack]) -> Attack:
    """``change`` applied to an attack, or to each member of an ensemble."""
    if isinstance(attack, Ensemble):
        return Ensemble([each(member, change) for member in attack.attacks], attack.selection_draws)
    return change(attack)


def _changes(attack: Attack, change: Callable[[Attack], Attack]) -> bool:
    if isinstance(attack, Ensemble):
        return any(_changes(member, change) for member in attack.attacks)
    return change(attack) is not attack


def changed(attack: Attack, options: Mapping[str, Any]) -> Attack:
    """``attack`` with the ``options`` that it has set to new values; the attack itself if it has none of them."""
    known = arguments(attack)
    kept = {name: value for name, value in options.items() if name in known}
    return rebuilt(attack, kept) if kept else attack


def on_the_defence(attack: Attack, modes: Sequence[str]) -> Attack:
    """The same attack on the defence itself: without a surrogate, and with no context handed over.

    The attack is unchanged if ``modes``, the purifier's gradient modes, lack its gradient, or if its objective needs a
    trace entry, which may be differentiable in the surrogate only.
    """
    if not isinstance(attack, GradientAttack) or attack.sees_the_defence:
        return attack
    if attack.gradient not in modes or attack.objective.needs:
        return attack
    return changed(attack, {"surrogate": None, "context": "own", "carry": []})


def twice_the_steps(attack: Attack) -> Attack:
    """The attack with twice as many steps or queries; an explicit step size is kept, so that too short a one shows."""
    name = "num_queries" if hasattr(attack, "num_queries") else "num_steps"
    return changed(attack, {name: 2 * getattr(attack, name, 0)})


def twice_the_draws(attack: Attack) -> Attack:
    return changed(attack, {"eot": 2 * getattr(attack, "eot", 0)})


def for_a_larger_budget(attack: Attack, factor: float, larger: ThreatModel) -> Attack:
    """The same attack for a budget ``factor`` times as large.

    It begins at the image, since a random start in a large budget would break the image by itself. An explicit step
    size is scaled with the budget, to at least 2 budgets divided by the number of steps.
    """
    if not isinstance(attack, FirstOrderAttack):
        return attack
    options: dict[str, Any] = {"random_start": False}
    if getattr(attack, "random_start", False) and not isinstance(attack, APGDTargeted):
        options["restarts"] = 1
    step = getattr(attack, "step_size", None)
    if step is not None:
        options["step_size"] = max(parse_ratio(step) * factor, 2.0 * larger.budget / attack.num_steps)
    return changed(attack, options)


def reach(attack: Attack, threat: ThreatModel) -> float | None:
    """num_steps * step_size / eps of an attack with fixed step sizes, the largest of an ensemble's members.

    None if a member with gradients has no fixed step size, or eps is 0. From a random start, the far edge of the ball
    is up to 2 eps away.
    """
    if threat.budget == 0:
        return None
    found = [
        1.0 * member.num_steps * member.step_length(threat) / threat.budget if isinstance(member, PGD) else None
        for member in gradient_attacks(attack)
    ]
    fixed = [length for length in found if length is not None]
    return max(fixed) if fixed and len(fixed) == len(found) else None
