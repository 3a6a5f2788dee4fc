"""Short names of a card's components, from their descriptions (`lustral.describe`)."""

from typing import Any

Description = dict[str, Any]

_LABELS = {
    "t_star": "t*={}",
    "num_steps": "{} steps",
    "t_large": "t_l={}",
    "t_small": "t_s={}",
    "num_resamples": "U={}",
    "output_weight": "λ={}",
    "distance_weight": "weight of the distance {}",
}
_ARGUMENTS = {
    "t_star": "t* (noising steps of 1000)",
    "share": "level of every image (share of t*)",
    "bias": "bias b (noising steps of 1000)",
    "temperature": "temperature τ (units of the score)",
    "num_times": "times that a score averages",
    "spacing": "distance of a score's times (noising steps)",
    "t_large": "level t_l inside the mask (noising steps of 1000)",
    "t_small": "level t_s outside of the mask (noising steps of 1000)",
    "tau": "threshold τ of the mask (share of the attention's range)",
    "area": "area of the mask (share of the pixels)",
    "num_resamples": "resampling rounds U",
    "output_weight": "weight λ of the victim's answer",
    "scale": "strength s of the guidance",
    "eps": "perturbation budget ε ({norm}, images in [0, 1])",
}
CONTROLS = ("FixedLevels", "MeanLevels", "ShuffledLevels")
"""Level rules that do not depend on the image."""
_NORMS = {"linf": "\N{SCRIPT SMALL L}\N{INFINITY}", "l2": "\N{SCRIPT SMALL L}2"}
_MAX_ARGUMENTS = 4


def defence_in_short(defence: Description) -> str:
    """A short name such as ``DiffPure t*=100, 10 steps, EulerMaruyama``; ``none`` for an undefended classifier."""
    purifier = defence.get("purifier", defence)
    if purifier["class"] == "Identity":
        return "none"
    if "purifier" not in purifier:
        return component_in_short(purifier)
    levels = f" {_part(purifier['levels'])}" if "levels" in purifier else ""
    return f"{purifier['class']}{levels} over {component_in_short(purifier['purifier'])}"


def method_in_short(defence: Description) -> str:
    """The names of the classes alone, such as ``SSNI SigmoidLevels over DiffPure``."""
    purifier = defence["purifier"]
    words = [purifier["class"]]
    words += [purifier["levels"]["class"]] if "levels" in purifier else []
    words += ["over", purifier["purifier"]["class"]] if "purifier" in purifier else []
    return "no purifier" if words == ["Identity"] else " ".join(words)


def argument_in_words(argument: str, norm: str) -> str:
    """The axis label of a dotted argument, with its unit if it has one.

    Args:
        argument: such as ``defence.purifier.t_star``.
        norm: the threat model's norm.
    """
    words = _ARGUMENTS.get(argument.rpartition(".")[2])
    return argument if words is None else words.format(norm=_NORMS.get(norm, norm))


def data_in_short(data: Description) -> str:
    """A short name such as ``digits``, or ``digits (validation)`` for images that are not of the test split."""
    name, split = str(data.get("dataset", "")), data.get("split", "test")
    return name if split == "test" else f"{name} ({split})"


def full_level(defence: Description) -> float | None:
    """t* of the first round in noising steps out of 1000; None if the purifier has none."""
    purifier = defence["purifier"]
    rounds = purifier.get("purifier", purifier)
    if "t_star" in rounds:
        return float(rounds["t_star"])
    return float(rounds["rounds"][0][0]) if "rounds" in rounds else None


def fixed_level(defence: Description) -> float | None:
    """The noise level of the first round, if it is the same for every image; None otherwise."""
    purifier, full = defence["purifier"], full_level(defence)
    rule = purifier.get("levels")
    if rule is None or full is None:
        return full
    return {"FixedLevels": full * rule.get("share", 0.0), "MeanLevels": purifier.get("mean_level")}.get(rule["class"])


def classifier_in_short(defence: Description) -> str:
    """A short name such as ``WideResNet-28-10`` or ``resnet50``."""
    classifier = defence["classifier"]
    if "name" in classifier:
        return str(classifier["name"])
    size = [str(classifier[key]) for key in ("depth", "width") if key in classifier]
    return "-".join([classifier["class"], *size])


def threat_in_short(threat: Description) -> str:
    """The norm, and the budget as it was given, such as ``linf 8/255``."""
    return f"{threat['norm']} {threat['eps']}"


def attack_in_short(attack: Description) -> str:
    """A short name such as ``PGD 20 x EOT 8, exact``, with a surrogate ``PGD 20, exact through DiffPure t*=50, 5
    steps``, and for an ensemble ``Ensemble of PGD 20, exact + PGD 20, bpda``."""
    if "attacks" in attack:
        members = dict.fromkeys(attack_in_short(member) for member in attack["attacks"])
        return f"{attack['class']} of {' + '.join(members)}"
    if "function" in attack:
        return f"{attack['class']} {attack['function']['name'].rpartition('.')[2]}, {attack['gradient']}"
    if not {"num_steps", "gradient"} <= attack.keys():
        return component_in_short({key: value for key, value in attack.items() if key != "threat"})
    words = f"{attack['class']} {attack['num_steps']}"
    if attack.get("eot", 1) > 1:
        words += f" x EOT {attack['eot']}"
    if attack.get("restarts", 1) > 1:
        words += f", {attack['restarts']} restarts"
    if attack.get("objective"):
        words += f", {attack['objective']['class']}"
    if attack.get("region", "all") != "all":
        words += f", {attack['region']}"
    through = f" through {_surrogate_in_short(attack['surrogate'])}" if attack.get("surrogate") else ""
    held = f", {attack['context']} context" if attack.get("context", "own") != "own" else ""
    return f"{words}, {attack['gradient']}{through}{held}"


def _surrogate_in_short(surrogate: Description) -> str:
    if "changes" not in surrogate:
        return defence_in_short(surrogate)
    return f"{surrogate['class']}({', '.join(f'{name}={value}' for name, value in surrogate['changes'].items())})"


def component_in_short(component: Description) -> str:
    """The class, its first few numbers, and the classes of its parts; networks and switches are left out."""
    numbers = [_argument(key, value) for key, value in component.items() if _is_number(value)]
    if len(numbers) > _MAX_ARGUMENTS:
        numbers[_MAX_ARGUMENTS:] = ["..."]
    parts = [
        _part(value)
        for value in component.values()
        if isinstance(value, dict) and "class" in value and not _is_network(value)
    ]
    return f"{component['class']} {', '.join(numbers + parts)}".rstrip()


def _part(component: Description) -> str:
    numbers = [_argument(key, value) for key, value in component.items() if _is_number(value)]
    return component["class"] + (f"({', '.join(numbers)})" if numbers else "")


def _argument(key: str, value: Any) -> str:
    return _LABELS.get(key, f"{key}={{}}").format(f"{value:g}" if isinstance(value, float) else value)


def _is_number(value: Any) -> bool:
    if isinstance(value, list):
        return 0 < len(value) <= 8 and all(_is_number(item) for item in value)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_network(component: Description) -> bool:
    """Whether a component is a network: weights are in its description or in a wrapped network's, or it is a network
    without stored weights."""
    nested = any(isinstance(value, dict) and _is_network(value) for value in component.values())
    return nested or "weights_sha256" in component or "image_size" in component or "channels" in component
