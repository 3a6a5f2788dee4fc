"""Finished runs on disk: their cards, and their records for what a card does not contain."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lustral.evaluation import Key, Rate, Record, VerdictRule, all_rules, bootstrap, read_records
from lustral.evaluation.card import SCHEMA, verdicts
from lustral.evaluation.corruption_card import KIND, SIDES
from lustral.evaluation.dependence import dependences
from lustral.evaluation.detection import KIND as DETECTION
from lustral.evaluation.doubts import audited_records
from lustral.evaluation.levels import mean
from lustral.ratio import parse_ratio

Card = dict[str, Any]

CORRUPTIONS = KIND
QUALITY = "quality"
"""The kind of an evaluation of image quality."""

ROBUSTNESS = "robustness"
"""The kind of an evaluation under attack, whose card does not name it."""

_HOW_TO = "run `python cli.py test -c configs/eval/<recipe>.yaml` first"


@dataclass(frozen=True)
class Run:
    """A finished evaluation.

    Attributes:
        name: the run's name in tables and figures: the folder's name, with as many parents as make it unique.
        folder: the run folder.
        card: the content of ``card.json``.
    """

    name: str
    folder: Path
    card: Card

    @property
    def kind(self) -> str:
        """What was evaluated: `ROBUSTNESS`, or what the card calls it."""
        return kind_of(self.card)

    @property
    def recipe(self) -> str:
        """The recipe's name, which is that of the run's folder."""
        return self.folder.name

    @property
    def target(self) -> str:
        """The verdict rule that the attack aimed at."""
        return aimed_rule(self.card)

    @property
    def num_draws(self) -> int:
        """Verdict draws stored for each clean and each adversarial image."""
        return self.card["protocol"]["verdict_draws"]

    @property
    def task(self) -> str:
        """Data, classifier and threat as one string: runs that share it differ in defence and attack only."""
        card = self.card
        threat = {**card["attack"]["threat"], "eps": parse_ratio(card["attack"]["threat"]["eps"])}
        return json.dumps([card["data"], card["defence"]["classifier"], threat], sort_keys=True)

    @property
    def defended(self) -> bool:
        """Whether there is a purifier."""
        return self.card["defence"]["purifier"]["class"] != "Identity"

    @cached_property
    def records(self) -> dict[Key, Record]:
        """The records from which the card was made, by (replicate, index); empty if only the card was kept."""
        replicates = range(self.card.get("replicates", 1))
        return read_records(self.folder / "records", [(r, index) for r in replicates for index in self.card["indices"]])

    def verdicts(self, rule: str, keys: Sequence[Key] | None = None) -> tuple[list[float], list[float]]:
        """The verdicts of ``rule`` on the clean and on the adversarial images, in [0, 1], for ``keys`` in their order
        (None: all)."""
        return verdicts(self._chosen(keys), self._rule(rule))

    def dependences(self, keys: Sequence[Key] | None = None) -> list[list[Key]]:
        """The clusters of these verdicts that are not independent (see `lustral.evaluation.dependence`)."""
        return dependences(self._chosen(keys))

    def _chosen(self, keys: Sequence[Key] | None) -> list[Record]:
        return list(self.records.values()) if keys is None else [self.records[key] for key in keys]

    def audit_rates(self) -> dict[str, Rate]:
        """The accuracies under the audit's attacks (rule `expected`) with 95 % intervals over the audited images; empty
        without records."""
        count, seed = self.card["protocol"]["audit_images"], self.card["seed"]
        audited = audited_records(list(self.records.values()), count, seed)
        if not audited:
            return {}
        _, attacked = verdicts(audited, self._rule("expected"))
        clusters = dependences(audited)
        rates = {"attack": bootstrap(attacked, clusters)}
        return rates | {name: bootstrap([r.audit[name] for r in audited], clusters) for name in audited[0].audit}

    def statistic(self, name: str) -> list[float]:
        """The values of a statistic in the records that have it, such as "level_clean" (see
        `lustral.evaluation.levels`)."""
        return [record.statistics[name] for record in self.records.values() if name in record.statistics]

    def statistic_mean(self, name: str) -> Rate:
        """The mean of a statistic with a 95 % interval over images, or over groups of images."""
        having = [record for record in self.records.values() if name in record.statistics]
        return mean([record.statistics[name] for record in having], dependences(having))

    def _rule(self, name: str) -> VerdictRule:
        return next(rule for rule in all_rules(self.num_draws) if rule.name == name)


def kind_of(card: Card) -> str:
    """The kind of evaluation that a card is of."""
    return card.get("kind", ROBUSTNESS)


def of_kind(runs: Sequence[Run], kind: str) -> list[Run]:
    """Those of the runs that are evaluations of one kind."""
    return [run for run in runs if run.kind == kind]


def aimed_rule(card: Card) -> str:
    """The verdict rule that the attack aimed at."""
    return next(name for name, entry in card["verdicts"].items() if entry["aimed_at"])


def num_images(runs: Sequence[Run]) -> str:
    """The number of images of the runs, such as "100", or "80 to 100"."""
    counts = sorted({run.card["n"] for run in runs})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def load_runs(run_dirs: Sequence[str | Path]) -> list[Run]:
    """The runs in ``run_dirs``, in that order; of a folder with several runs all are loaded, sorted by path.

    Raises:
        FileNotFoundError: if a folder is missing, or no card is in it or below it.
        ValueError: if a card cannot be read, or has another schema.
    """
    if not run_dirs:
        raise ValueError(f"No run folder is given, so there is nothing to report: {_HOW_TO}.")
    folders: dict[Path, Path] = {}
    for given in run_dirs:
        for folder in _folders_with_cards(Path(given).expanduser()):
            folders.setdefault(folder.resolve(), folder)
    names = _unique_names(list(folders))
    return [Run(names[path], folder, read_card(folder / "card.json")) for path, folder in folders.items()]


def read_card(path: Path) -> Card:
    """The card in ``path``.

    Raises:
        ValueError: if it is damaged, or has a schema that this version of Lustral does not read.
    """
    try:
        card = json.loads(path.read_text())
        schema = card["schema"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is no card of an evaluation: move it away and {_HOW_TO}.") from error
    if schema != SCHEMA:
        raise ValueError(
            f"{path} has schema {schema}, and this version of Lustral reads schema {SCHEMA}: report it with "
            f"the version that wrote it, or move it away and {_HOW_TO}."
        )
    if lacking := _lacking(card):
        raise ValueError(
            f"{path} is damaged (it lacks {lacking}): run its recipe again, which makes the card from the records."
        )
    return card


_OTHER_KINDS: Mapping[str, tuple[str, ...]] = {
    CORRUPTIONS: (
        *("status", "n", "fingerprint", "data", "cost.calls_per_image", "cost.seconds_per_image"),
        *("cost.network_calls_per_image", "defence.purifier.class", "defence.classifier.class"),
        *(f"accuracy.expected.{side}.{what}" for side in SIDES for what in ("mean", "by_severity", "by_type", "cells")),
        *("accuracy.expected.difference.verdict", "accuracy.expected.draws"),
    ),
    QUALITY: (
        *("status", "n", "quality.adversarial.distance.value", "right.clean.value", "closer.value"),
        *("alignment.value", "cost.calls_per_image", "attack.class", "attack.threat.eps", "attack.threat.norm"),
        *("defence.purifier.class", "defence.classifier.class", "data", "fingerprint"),
    ),
    DETECTION: ("status", "n", "accuracy.clean", "detectors", "groups", "budgets", "attack.threat.norm", "data"),
}
"""The entries, dotted, that a card of another kind must have."""
_PARTS = {
    "status": str, "n": int, "indices": list, "verdicts": dict, "cost": dict, "audit": dict, "attack": dict,
    "defence": dict, "protocol": dict, "data": dict, "fingerprint": str,
}  # fmt: skip


def _lacking(card: Card) -> str:
    """The entries that a damaged card lacks or has in another form, in words; "" if there are none."""
    if kind_of(card) != ROBUSTNESS:
        if kind_of(card) not in _OTHER_KINDS:
            return f"a kind of evaluation that is known here, {', '.join((ROBUSTNESS, *_OTHER_KINDS))}"
        return next((path for path in _OTHER_KINDS[kind_of(card)] if _at(card, path) is None), "")
    for name, kind in _PARTS.items():
        if not isinstance(card.get(name), kind):
            return name
    rates = [f"{rule}.{kind}.{end}" for rule in card["verdicts"] for kind in ("clean", "robust") for end in _RATE]
    numbers = [*(f"verdicts.{name}" for name in rates), *(f"cost.{name}" for name in _COST)]
    if card["cost"].get("defence") is not None:  # older cards do not have it
        numbers += [f"cost.defence.{name}" for name in _COST]
    wanted = [*numbers, "attack.threat.eps", "attack.threat.norm", "attack.class"]
    wanted += ["defence.purifier.class", "defence.classifier.class"]
    wanted += ["protocol.verdict_draws", *(f"verdicts.{rule}.draws" for rule in card["verdicts"])]
    for path in wanted:
        value = _at(card, path)
        if value is None or (path in numbers and not isinstance(value, (int, float))):
            return path
    aimed = [rule for rule, entry in card["verdicts"].items() if entry.get("aimed_at")]
    return "" if len(aimed) == 1 else "the rule that the attack aimed at"


def _at(card: Card, path: str) -> Any:
    """The entry at a dotted path; None where there is none."""
    value: Any = card
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


_RATE = ("value", "low", "high")
_COST = ("network_calls_per_image", "seconds_per_image", "peak_memory_mib")


def _folders_with_cards(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no run folder {folder}: {_HOW_TO}.")
    cards = [folder / "card.json"] if (folder / "card.json").is_file() else sorted(folder.rglob("card.json"))
    if not cards:
        raise FileNotFoundError(
            f"No card.json is in {folder} or below it: {_HOW_TO} (an interrupted run goes on where it stopped)."
        )
    yield from (card.parent for card in cards)


def _unique_names(paths: Sequence[Path]) -> dict[Path, str]:
    """The shortest trailing part of each of ``paths`` that is unique among them."""
    names = {}
    for path in paths:
        depth = 1
        while sum(other.parts[-depth:] == path.parts[-depth:] for other in paths) > 1:
            depth += 1
        names[path] = "/".join(path.parts[-depth:])
    return names
