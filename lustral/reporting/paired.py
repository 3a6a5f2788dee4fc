"""Paired comparisons of runs on the same images, which are more precise than a comparison of two intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

from lustral.evaluation import Key, compare
from lustral.evaluation.intervals import Comparison
from lustral.reporting.runs import Run
from lustral.reporting.sweeps import DERIVED
from lustral.reporting.words import CONTROLS


@dataclass(frozen=True)
class Pair:
    """The accuracies of ``run`` minus those of ``reference``, on their common images.

    Attributes:
        run, reference: the runs' names.
        rule: the verdict rule that both attacks aimed at.
        n: number of common images (of several replicates: verdicts on them).
        clean: difference of the clean accuracies.
        robust: difference of the robust accuracies.
    """

    run: str
    reference: str
    rule: str
    n: int
    clean: Comparison
    robust: Comparison


def paired_comparisons(runs: Sequence[Run]) -> tuple[list[Pair], list[str]]:
    """Comparisons of every run with the first, and of every run with sample-specific levels with its base purifier and
    its controls; and a sentence for each run that cannot be compared with the first."""
    pairs, notes = [], []
    for run in runs[1:]:
        obstacle = _obstacle(runs[0], run)
        if obstacle:
            notes.append(f"{run.name} is not compared with {runs[0].name}: {obstacle}.")
        else:
            pairs.append(_pair(runs[0], run))
    for run in runs[1:]:
        for rival in runs[1:]:
            if _is_base_or_control(rival, run) and not _obstacle(rival, run):
                pairs.append(_pair(rival, run))
    return pairs, notes


def _is_base_or_control(rival: Run, run: Run) -> bool:
    """Whether ``run`` has sample-specific levels, and ``rival`` is its base purifier or a control."""
    own, other = (each.card["defence"]["purifier"] for each in (run, rival))
    if own.get("levels", {}).get("class", CONTROLS[0]) in CONTROLS or run.task != rival.task:
        return False
    if run.card["attack"] != rival.card["attack"]:
        return False
    base = {key: value for key, value in other.items() if key not in DERIVED}
    if base == own["purifier"]:
        return True
    rule, rest = other.get("levels", {}), {key: value for key, value in own.items() if key not in (*DERIVED, "levels")}
    # A control with the run's own level rule; FixedLevels has no rule, and is a control of every run.
    same = rule.get("class") in CONTROLS and rule.get("rule", own["levels"]) == own["levels"]
    return same and {key: value for key, value in base.items() if key != "levels"} == rest


def _common(reference: Run, run: Run) -> list[Key]:
    """The keys (replicate, index) that both runs have records of."""
    return sorted(reference.records.keys() & run.records.keys())


def _obstacle(reference: Run, run: Run) -> str | None:
    """Why the two runs cannot be compared; None if they can."""
    for what in ("data", "threat", "target", "verdict_draws"):
        if _setting(reference, what) != _setting(run, what):
            return f"the {what.replace('_', ' ')} differs"
    without = [each.name for each in (reference, run) if not each.records]
    if without:
        return f"the records of {' and '.join(without)} are missing"
    common = _common(reference, run)
    if not common:
        return "they have no image in common"
    if any(reference.records[key].label != run.records[key].label for key in common):
        return "the labels of their images differ"
    return None


def _setting(run: Run, what: str) -> object:
    # Of the protocol only the compared option counts: the audit's options change no verdict, and may differ.
    attack = run.card["attack"]
    places = {"data": run.card["data"], "threat": attack["threat"], "target": attack["target"]}
    return places[what] if what in places else run.card["protocol"][what]


def _pair(reference: Run, run: Run) -> Pair:
    keys = _common(reference, run)
    first, second = (each.verdicts(run.target, keys) for each in (reference, run))
    # If either run judges groups, the paired differences within a group are not independent.
    clusters = [*reference.dependences(keys), *run.dependences(keys)]
    clean, robust = (compare(a, b, clusters=clusters) for a, b in zip(first, second, strict=True))
    return Pair(run.name, reference.name, run.target, len(keys), clean, robust)
