"""The audit's table: which attacks look at a run's number a second time, and which of them need not.

After Carlini et al. 2019 (arXiv 1902.06705), Tramer et al. 2020 (2002.08347), Croce et al. 2020 (2003.01690) and Pintor
et al. 2022 (2106.09947). What their results mean is said in `lustral.evaluation.doubts`.
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
    """What the audit's own attacks may cost.

    Attributes:
        steps: gradient steps of the house's attack on a deterministic defence, for each of its losses and targets.
        random_steps: gradient steps of the house's attack on a random defence.
        eot: draws that their gradients are averaged over.
        queries: of the search without gradients on a deterministic defence.
        random_queries: the same on a random defence.
        query_eot: draws that their losses are averaged over.
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
    """One question of the audit.

    Attributes:
        name: of its results in records and on the card.
        attack: what is run on the audited images.
        threat: within which budget.
        known_noise: whether the attacker knows the verdict's noise.
        continues: whether images that the run's attack broke for good (a deterministic defence's) are left alone: they
            cannot become more wrong.
    """

    name: str
    attack: Attack
    threat: ThreatModel
    known_noise: bool = False
    continues: bool = True


@dataclass(frozen=True)
class Plan:
    """What is asked of a run, and what is not, with the reason; ``reach`` is how far the run's attack can walk, in
    budgets (None: its steps have no fixed length)."""

    probes: list[Probe] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    reach: float | None = None

    def described(self) -> dict[str, Any]:
        """As plain data, for the fingerprint and the card."""
        asked = {probe.name: describe(probe.attack) for probe in self.probes if probe.name in _OF_THE_HOUSE}
        return {
            "asked": [probe.name for probe in self.probes],
            "house": asked,
            "skipped": self.skipped,
            "reach": self.reach,
        }


_OF_THE_HOUSE = ("house", "bpda", "square", "random_directions")


def house_attack(random: bool, num_classes: int, gradient: GradientMode = "exact") -> Attack:
    """The attack that a defence is judged by if nobody chooses another.

    A deterministic one: APGD on the cross-entropy, then on the targeted DLR loss for up to 9 targets, as AutoAttack
    begins (with fewer than 4 classes on DLR, with 2 on the margin). A random one: PGD in 20 steps on the mean
    cross-entropy over 8 draws.
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
    """The probes of a run with ``attack`` on a defence with ``purifier``, for images of ``shape`` (C, H, W)."""
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
    """Whether a run's attack is the house's, or has it among its members."""
    if describe(attack) == describe(house):
        return True
    if type(attack) is not Ensemble:  # of a subclass nobody knows what it makes of its members' images
        return False
    own = [describe(member) for member in attack.attacks]
    wanted = house.attacks if isinstance(house, Ensemble) else [house]
    return all(describe(member) in own for member in wanted)


# Attacks that differ from the run's ------------------------------------------------------------


def each(attack: Attack, change: Callable[[Attack], Attack]) -> Attack:
    """The attack after ``change``; an ensemble is still one, of changed members."""
    if isinstance(attack, Ensemble):
        return Ensemble([each(member, change) for member in attack.attacks], attack.selection_draws)
    return change(attack)


def _changes(attack: Attack, change: Callable[[Attack], Attack]) -> bool:
    if isinstance(attack, Ensemble):
        return any(_changes(member, change) for member in attack.attacks)
    return change(attack) is not attack


def changed(attack: Attack, options: Mapping[str, Any]) -> Attack:
    """``attack`` with other values of those options that it has; itself if it has none."""
    known = arguments(attack)
    kept = {name: value for name, value in options.items() if name in known}
    return rebuilt(attack, kept) if kept else attack


def on_the_defence(attack: Attack, modes: Sequence[str]) -> Attack:
    """The same attack on the defence itself: without a surrogate, and with nothing held. As it is where the purifier
    does not offer its gradient in ``modes``, or its objective follows what only a variant differentiates."""
    if not isinstance(attack, GradientAttack) or attack.sees_the_defence:
        return attack
    if attack.gradient not in modes or attack.objective.needs:
        return attack
    return changed(attack, {"surrogate": None, "context": "own", "carry": []})


def twice_the_steps(attack: Attack) -> Attack:
    """An explicit step size stays, so that one that is too short shows."""
    name = "num_queries" if hasattr(attack, "num_queries") else "num_steps"
    return changed(attack, {name: 2 * getattr(attack, name, 0)})


def twice_the_draws(attack: Attack) -> Attack:
    return changed(attack, {"eot": 2 * getattr(attack, "eot", 0)})


def for_a_larger_budget(attack: Attack, factor: float, larger: ThreatModel) -> Attack:
    """The same attack for a budget ``factor`` times as large. It begins at the image: a random start in a large budget
    breaks everything, and would be counted as the attack's merit. An explicit step size grows along, and is long enough
    to use the budget up."""
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
    """How far an attack can walk, in budgets: the most that any member of fixed steps can. From a random start the
    farthest edge of the budget is 2 away."""
    if threat.budget == 0:
        return None
    found = [
        1.0 * member.num_steps * member.step_length(threat) / threat.budget if isinstance(member, PGD) else None
        for member in gradient_attacks(attack)
    ]
    fixed = [length for length in found if length is not None]
    return max(fixed) if fixed and len(fixed) == len(found) else None
