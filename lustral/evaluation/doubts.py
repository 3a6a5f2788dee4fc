"""The interpretation of an audit: which findings make a robust number suspect, and the sentences on the card.

A finding that could be chance must be both **material** (worth points of accuracy) and **significant**, in a test
paired image by image on the same draws. docs/protocol.md has simulated rates of false suspicion for sound runs with 16
audited images.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import stats

from lustral.attacks.objectives import margin
from lustral.evaluation.attacked import zero_share
from lustral.evaluation.audit import ACTUAL, ATTACK, KNOWN_ATTACK, PREDICTED, audited_indices
from lustral.evaluation.dependence import by_group
from lustral.evaluation.records import Record
from lustral.evaluation.verdicts import Expected

ZERO_GRADIENTS = 0.01
"""Largest acceptable share of zero gradients, among the gradients of correctly classified draws."""
BLIND_GAIN = 0.01
"""Smallest acceptable ratio of the actual to the predicted rise of the loss over an attack."""
BLIND_STEP = 0.05
"""Smallest acceptable ratio of the actual to the predicted rise of the margin over one step (median over images)."""
RISING_STEPS = 0.75
"""Smallest acceptable share of images whose margin rises along the gradient."""
LARGE_EPS_ACCURACY = 0.1
"""Largest acceptable accuracy when the budget allows every image."""
REACH = 2.0
"""The distance in units of eps that an attack's steps must be able to cover, from one edge of the ball to the other."""
MATERIAL, POINTS, NEARER = 0.03, 0.02, 0.1
"""MATERIAL: smallest mean difference of `rightness` that counts, if the accuracies differ by at least POINTS. NEARER:
the smallest that counts if they do not, so that the right draws are mostly closer to the decision boundary."""
ALPHA = 0.01
"""Significance level for a difference between two attacks (one-sided, paired t-test)."""
STRANGE = 0.001
"""Significance level for comparisons that a sound run fails by chance alone: the same images on other draws, and other
images."""
OPEN = 0.05
"""Significance level at which a random defence's difference is called undecided: more images should be audited."""
EXAMPLES = 0.02
"""Share of images that a probe may break on a deterministic defence where the attack did not."""
FEW = 6
"""With fewer images there is no verdict on the gradient, on a loss that does not rise, or on random directions."""

WORDS = {
    "house": "the house's attack",
    "double_steps": "the attack with twice the steps",
    "double_eot": "the attack with twice the draws",
    "bpda": "bpda",
    "square": "a search without gradients",
    "random_directions": "random directions",
}
"""The probes that must not beat a sound attack, and their names in sentences."""
_OF_THE_DEFENCE = ("bpda", "square", "random_directions")  # these beat the exact gradient if gradients are masked


def audited_records(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """The records whose audit counts: of all audited ones the ``count`` with the smallest keyed random numbers (see
    `audited_indices`), since a run that was extended may have audited more.

    Where images are judged in groups, only groups whose images were all audited count; audits are of replicate 0 only.
    """
    audited = {record.index: record for record in records if record.audit}
    groups: dict[int, list[int]] = {}
    for index, record in audited.items():
        groups.setdefault(record.unit[1], []).append(index)
    size = max(map(len, groups.values()), default=1)
    whole = [index for group in groups.values() if len(group) == size for index in group]
    return [audited[index] for index in audited_indices(whole, count, seed, size)]


def audit_records(
    records: Sequence[Record], verdict_draws: int, count: int, seed: int, plan: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str], list[str]]:
    """The card's audit section; the reasons to suspect the robust number (none for a sound run); and the findings that
    too few audited images leave undecided.

    Args:
        records: all records of the run.
        verdict_draws: the protocol's number of verdict draws.
        count: the number of images to audit.
        seed: the run's seed.
        plan: the description of the `Plan`; empty for records of versions without one.
    """
    report: dict[str, Any] = {}
    doubts, undecided = [], []
    failed = [record.index for record in records if record.failed]
    report["failed_samples"] = failed
    if failed:
        doubts.append(f"{len(failed)} samples met NaN or Inf and count as broken (first: {failed[0]})")
    doubts += _gradient_doubts(records, report)
    length = plan.get("reach")
    if length is not None:
        report["reach"] = length
        if length < REACH:
            doubts.append(f"the attack cannot reach the edge of its budget: its steps add up to {length:.2g} eps of 2")

    audited = audited_records(records, count, seed)
    size = max(Counter(record.unit for record in records).values(), default=1)
    asked = -(-count // size) * size  # whole groups
    report |= {"num_images": len(audited), "asked": min(asked, len({record.index for record in records}))}
    report |= {name: plan[name] for name in ("house", "skipped") if name in plan}
    if audited:
        rule = Expected(verdict_draws)
        attacked = [0.0 if r.failed else float(rule(r.adversarial_logits[:, None], _label(r))[0]) for r in audited]
        names = list(audited[0].audit)
        # The attack's accuracy on the draws on which the probes are judged, so that the two can be compared.
        alike = [
            _right(r.audit_margins[ATTACK]) if ATTACK in r.audit_margins else known
            for r, known in zip(audited, attacked, strict=True)
        ]
        report["expected_accuracy"] = {ATTACK: _mean(alike)} | {
            name: _mean([r.audit[name] for r in audited]) for name in names
        }
        doubts += _failed_probes(audited, names)
        doubts += _unkeyed(audited)
        doubts += _other_draws(audited, attacked)
        doubts += _easier(records, audited, attacked, rule)
        doubts += _compared(audited, names, report, undecided)
        doubts += _step_doubts(audited, report)
        if report["expected_accuracy"].get("large_eps", 0.0) > LARGE_EPS_ACCURACY:
            left = 100 * report["expected_accuracy"]["large_eps"]
            doubts.append(f"{left:.0f} % accuracy is left at a budget that allows every image")
    return report, doubts, undecided


# The attack's own statistics ------------------------------------------------------------


def _gradient_doubts(records: Sequence[Record], report: dict[str, Any]) -> list[str]:
    """Doubts from all records: zero gradients, and a loss that does not rise as the gradients predict."""
    differentiated = [r.statistics for r in records if "zero_gradients" in r.statistics]  # failed samples have none
    zero = zero_share(differentiated)
    moving = [r for r in records if "zero_gradients" in r.statistics and r.statistics["predicted_gain"] > 0]
    moved = [r.statistics for r in moving]
    if not moved:
        if zero <= ZERO_GRADIENTS:
            return []
        report["zero_gradient_share"] = zero
        return [f"no gradient moved any image: {100 * zero:.1f} % of them are zero everywhere"]
    gain = np.array([s["loss_last"] - s["loss_first"] for s in moved])
    predicted = np.array([s["predicted_gain"] for s in moved])
    report["zero_gradient_share"] = zero
    report["loss"] = {
        "mean_gain": float(gain.mean()),
        "predicted_gain": float(predicted.mean()),
        "gain_share": float(gain.mean() / predicted.mean()),
        "median_share": float(np.median(gain / predicted)),
    }
    doubts = []
    if zero > ZERO_GRADIENTS:
        doubts.append(f"{100 * zero:.1f} % of the gradients are zero everywhere")
    lacking = by_group(BLIND_GAIN * predicted - gain, moving)
    if len(lacking) >= FEW and _chance_of_larger(lacking) < 0.01:
        rises = np.median(gain) > 0
        doubts.append(
            "the loss rises by less than 1 % of what its gradient predicts"
            if rises
            else "the loss does not rise with the attack's steps"
        )
    return doubts


def _step_doubts(audited: Sequence[Record], report: dict[str, Any]) -> list[str]:
    """Doubts from single steps: the margin changes otherwise than the gradient predicts."""
    steps = [(sum(r.audit_steps[ACTUAL]), sum(r.audit_steps[PREDICTED])) for r in audited if r.audit_steps]
    steps = [(actual, predicted) for actual, predicted in steps if predicted > 0]
    if not steps:
        return []
    share = float(np.median([actual / predicted for actual, predicted in steps]))
    rising = _mean([float(actual > 0) for actual, _ in steps])
    report["step"] = {"share_of_predicted": share, "rising": rising, "num_images": len(steps)}
    if len(steps) < FEW or (rising >= RISING_STEPS and share >= BLIND_STEP):
        return []
    return [
        f"the gradient does not predict what a step does: the margin rises on {100 * rising:.0f} % of the audited "
        f"images, by a median of {100 * share:.0f} % of what it says"
    ]


# The probes ------------------------------------------------------------


def rightness(margins: Sequence[float], scale: float) -> float:
    """A smooth accuracy on one image, in [0, 1]: the mean over draws of tanh(-margin / scale), 0 for wrong draws.

    Unlike the accuracy it is lower if right draws are close to the decision boundary; it is bounded, so that no image
    dominates a mean.
    """
    return _mean([math.tanh(max(-value, 0.0) / scale) for value in margins])


def _compared(
    audited: Sequence[Record], names: Sequence[str], report: dict[str, Any], undecided: list[str]
) -> list[str]:
    """Doubts from comparing every probe with the attack on the same images and draws; fills ``report`` and
    ``undecided``."""
    own = [value for r in audited for value in r.audit_margins.get(ATTACK, ()) if value < 0]
    scale = float(-np.median(own)) if own else 1.0
    # Where images are judged in groups, an image that only a probe breaks is no counterexample: its group may be why.
    deterministic = all(len(r.audit_margins.get(ATTACK, ())) <= 1 and r.group is None for r in audited)
    left: dict[str, list[float]] = {}
    doubts: list[str] = []
    found: dict[str, Any] = {}

    def against(name: str, other: str) -> tuple[np.ndarray, np.ndarray]:
        """The `rightness` of each image or group under ``name`` and ``other``, where both are known."""
        known = [r for r in audited if not r.failed and {name, other} <= r.audit_margins.keys()]
        first, second = (
            by_group([rightness(r.audit_margins[key], scale) for r in known], known) for key in (name, other)
        )
        return first, second

    def points(name: str) -> float:
        """The accuracy under the attack minus that under ``name``, on the same draws."""
        known = [r.audit_margins for r in audited if not r.failed and {name, ATTACK} <= r.audit_margins.keys()]
        return _mean([_right(margins[ATTACK]) - _right(margins[name]) for margins in known])

    for name in names:
        other = KNOWN_ATTACK if name == "known_noise" else ATTACK
        probe, attack = against(name, other)
        if not len(probe):
            continue
        left[name] = probe.tolist()
        gain = attack - probe
        entry: dict[str, Any] = {"difference": float(gain.mean()), "p": _chance_of_larger(gain)}
        found[name] = entry
        if name in WORDS:
            broken = int(((attack > 0) & (probe == 0)).sum()) if deterministic else 0
            entry["word"] = _word(gain, points(name), broken, deterministic)
        elif name == "known_noise" and gain.mean() < -MATERIAL and _chance_of_larger(-gain) < ALPHA:
            doubts.append("knowing the noise makes the attack worse: the noise of the defence is not keyed")
        elif name == "double_eps" and gain.mean() < -2 * MATERIAL and _chance_of_larger(-gain) < ALPHA:
            doubts.append("accuracy rises when the budget is doubled")
    report["probes"] = found
    doubts = _beaten(found, left, report["expected_accuracy"], undecided) + doubts
    if "random_directions" in left and "square" in found:  # square is skipped only if the budget is 0
        random, attack = against("random_directions", ATTACK)
        either = (random > 0) | (attack > 0)
        weaker = found["random_directions"]["word"] != "stronger"  # else `_beaten` has reported it
        if weaker and either.sum() >= FEW and _chance_of_larger((random - attack)[either], rank=True) > 0.05:
            doubts.append("the attack does no better than random directions")
    return doubts


def _beaten(
    found: Mapping[str, Any],
    left: Mapping[str, Sequence[float]],
    accuracy: Mapping[str, float],
    undecided: list[str],
) -> list[str]:
    """Sentences on the probes that are stronger than the attack; undecided ones go to ``undecided``.

    Where the house's attack is stronger (or undecided), probes such as bpda hint at masked gradients only if they beat
    the house's attack too; else they are left out.
    """
    doubts = []
    for name in WORDS:
        word = found.get(name, {}).get("word")
        if word not in ("stronger", "undecided"):
            continue
        alike = ""
        if name in _OF_THE_DEFENCE and "house" in left and _mean(left[name]) > _mean(left["house"]) - MATERIAL:
            if found["house"]["word"] in ("stronger", "undecided"):
                continue
            alike = ", and the house's attack is as strong"
        rights = f"{100 * accuracy[name]:.0f} against {100 * accuracy[ATTACK]:.0f} % of the audited images stay right"
        nearer = "" if accuracy[name] < accuracy[ATTACK] else ", but nearer to wrong"
        sentence = f"{WORDS[name]} beats the attack ({rights}{nearer}){alike}"
        (doubts if word == "stronger" else undecided).append(sentence)
    return doubts


def _word(gain: np.ndarray, points: float, broken: int, deterministic: bool) -> str:
    """Whether a probe is "stronger" than the attack, "undecided" or "no stronger".

    Args:
        gain: for each image or group the `rightness` under the attack minus that under the probe.
        points: the accuracy under the attack minus that under the probe.
        broken: the number of images that only the probe broke; counterexamples on a deterministic defence.
        deterministic: whether the defence is deterministic, and judges images alone.
    """
    if gain.mean() >= (MATERIAL if points >= POINTS else NEARER) and _chance_of_larger(gain) < ALPHA:
        return "stronger"
    if not deterministic and gain.mean() >= MATERIAL and _chance_of_larger(gain) < OPEN:
        return "undecided"
    if deterministic and broken:
        if stats.binomtest(broken, len(gain), EXAMPLES, alternative="greater").pvalue < 0.05:
            return "stronger"
        if broken / len(gain) >= EXAMPLES:
            return "undecided"
    return "no stronger"


def _failed_probes(audited: Sequence[Record], names: Sequence[str]) -> list[str]:
    doubts = []
    for name in names:
        count = sum(
            name in r.audit and name not in r.audit_margins for r in audited if r.audit_margins and not r.failed
        )
        if count:
            doubts.append(f"{count} audited images met NaN or Inf under the audit's {name}")
    return doubts


def _unkeyed(audited: Sequence[Record]) -> list[str]:
    """Doubts if judging the adversarial image again on the verdict's own draw gave another margin."""
    different, seen = 0, 0
    for r in audited:
        random = len(r.audit_margins.get(ATTACK, ())) > 1
        again = r.audit_margins.get(KNOWN_ATTACK if random else ATTACK)
        if again and not r.failed:
            first = float(margin(r.adversarial_logits[:1], _label(r))[0])
            seen += 1
            different += not math.isclose(first, again[0], rel_tol=1e-3, abs_tol=1e-3)
    if not different:
        return []
    return [f"the same image and noise gave two answers on {different} of {seen} audited images: noise is not keyed"]


def _other_draws(audited: Sequence[Record], attacked: Sequence[float]) -> list[str]:
    """Doubts if a random defence's accuracy on the adversarial images differs between the audit's draws and the
    verdict's (``attacked``)."""
    pairs = [
        (r, share, _mean([float(value < 0) for value in r.audit_margins[ATTACK]]))
        for r, share in zip(audited, attacked, strict=True)
        if not r.failed and len(r.audit_margins.get(ATTACK, ())) > 1
    ]
    if not pairs:
        return []
    seen, *shares = zip(*pairs, strict=True)
    verdict, audit = (by_group(each, seen) for each in shares)
    change = verdict - audit
    if abs(change.mean()) < MATERIAL or _chance_of_larger(change * np.sign(change.mean())) >= STRANGE:
        return []
    return [
        f"the same images are judged otherwise on the audit's draws ({100 * audit.mean():.0f} against "
        f"{100 * verdict.mean():.0f} % stay right): the defence heeds more of its noise stream than the noise"
    ]


def _easier(
    records: Sequence[Record], audited: Sequence[Record], attacked: Sequence[float], rule: Expected
) -> list[str]:
    """Doubts if accuracy is higher on images that are not audited: the audited ones are a random sample, so an attack
    should harm both alike."""
    rest = [r for r in records if not r.audit]
    left = [0.0 if r.failed else float(rule(r.adversarial_logits[:, None], _label(r))[0]) for r in rest]
    others, attacked = by_group(left, rest).tolist(), by_group(attacked, audited).tolist()
    if len(others) < 2 or len(audited) < 2 or _mean(others) - _mean(attacked) < MATERIAL:
        return []
    if stats.mannwhitneyu(others, attacked, alternative="greater").pvalue >= STRANGE:
        return []
    return [
        f"the attack spares the images that are not audited ({100 * _mean(others):.0f} % of them stay right, "
        f"{100 * _mean(attacked):.0f} % of the audited)"
    ]


# Arithmetic ------------------------------------------------------------


def _chance_of_larger(values: np.ndarray, rank: bool = False) -> float:
    """The one-sided p-value of a positive mean of ``values``: a t-test, or with ``rank`` Wilcoxon's signed-rank test,
    which a few large values do not dominate."""
    if len(values) < 2 or not np.any(values):
        return 1.0
    if np.all(values == values[0]):
        return 0.5 ** len(values) if values[0] > 0 else 1.0
    test: Any = stats.wilcoxon if rank else partial(stats.ttest_1samp, popmean=0)
    return float(test(values, alternative="greater").pvalue)


def _label(record: Record) -> torch.Tensor:
    return torch.tensor([record.label])


def _right(margins: Sequence[float]) -> float:
    """The share of draws that are classified correctly."""
    return _mean([float(value < 0) for value in margins])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
