"""What a card says about the attack: what it differentiates, and the results of an ensemble's members."""

from collections.abc import Mapping, Sequence
from typing import Any

from lustral.attacks.ensemble import ASKED, WINNER
from lustral.evaluation.records import Record


def differentiated(attack: Mapping[str, Any], purifier: Mapping[str, Any]) -> list[str]:
    """What an attack differentiates, each once: "defence", or words on how it differs from the defence.

    Args:
        attack: the attack's description (see `describe`). An ensemble's answer is that of its members; the answer is
            empty for an attack without gradients.
        purifier: the description of the defence's purifier.
    """
    if "attacks" in attack:
        return list(dict.fromkeys(word for member in attack["attacks"] for word in differentiated(member, purifier)))
    gradient, surrogate = attack.get("gradient"), attack.get("surrogate")
    if gradient is None:
        return []
    words = []
    if gradient != "exact" and (surrogate or purifier).get("class") != "Identity":
        words.append(f"the gradient {gradient}")
    if surrogate is not None:
        words.append(_surrogate(surrogate))
    if attack.get("context", "own") != "own":
        words.append(f"what the {attack['context']} image decides, held")
    if attack.get("carry"):
        words.append(f"the {', '.join(attack['carry'])} of the last step, held")
    return [" of ".join(words) or "defence"]


def members(records: Sequence[Record], attack: Mapping[str, Any]) -> dict[str, Any]:
    """The card's section "members" for an ensemble; an empty dict for other attacks.

    For each member: "wins" (the number of images that are its results), "attacked" (the number of images that it
    attacked), and, if it follows gradients, "zero_gradient_share". Failed images count for no member.
    """
    if "attacks" not in attack:
        return {}
    healthy, rows = [record.statistics for record in records if not record.failed], []
    for number, member in enumerate(attack["attacks"]):
        row: dict[str, Any] = {"attack": _name(member)}
        row["wins"] = sum(statistics[WINNER] == number for statistics in healthy)
        asked = [statistics for statistics in healthy if statistics.get(f"{number} {ASKED}", 1)]
        row["attacked"] = len(asked)
        key = f"{number} zero_gradients"
        if any(key in statistics for statistics in asked):
            row["zero_gradient_share"] = zero_share(asked, f"{number} ")
        rows.append(row)
    return {"members": rows}


def zero_share(statistics: Sequence[Mapping[str, float]], prefix: str = "") -> float:
    """The share of the gradients of correctly classified draws that are zero everywhere; 0 if there are no such draws.

    Records of older versions lack "right_draws"; each of them then has weight 1.
    """
    zero, right = f"{prefix}zero_gradients", f"{prefix}right_draws"
    found = [(each[zero], each.get(right, 1.0)) for each in statistics if zero in each]
    draws = sum(count for _, count in found)
    return sum(share * count for share, count in found) / draws if draws else 0.0


def _name(attack: Mapping[str, Any]) -> str:
    """A name for a member, such as ``PGD exact WithScore(CrossEntropy, -1.0)``."""
    words = [attack["class"], attack.get("gradient"), _objective(attack.get("objective"))]
    if attack.get("surrogate"):
        words.append(f"on {_surrogate(attack['surrogate']).removeprefix('the surrogate ')}")
    words.append("at the clean image's context" if attack.get("context", "own") != "own" else None)
    return " ".join(word for word in words if word)


def _surrogate(described: Mapping[str, Any]) -> str:
    if described["class"] == "Variant":
        return f"the variant {', '.join(f'{name} = {value}' for name, value in described['changes'].items())}"
    return f"the surrogate {described['class']}"


def _objective(described: Mapping[str, Any] | None) -> str | None:
    if described is None:
        return None
    inner = [_objective(value) if isinstance(value, Mapping) else str(value) for value in described.values()]
    arguments = [str(word) for name, word in zip(described, inner, strict=True) if name not in ("class", "module")]
    return described["class"] + (f"({', '.join(arguments)})" if arguments else "")
