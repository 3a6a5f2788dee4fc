"""The card: everything that a reader needs to judge a robust number, made from a run's files alone."""

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from lustral.evaluation.attacked import differentiated, members
from lustral.evaluation.cost import total_cost
from lustral.evaluation.dependence import dependences, group_section
from lustral.evaluation.doubts import audit_records
from lustral.evaluation.intervals import Clusters, Rate, bootstrap, wilson
from lustral.evaluation.levels import level_means
from lustral.evaluation.records import Key, KeyedRecord, Record, read_fingerprint, read_records
from lustral.evaluation.verdicts import VerdictRule, all_rules
from lustral.networks.importing.reading import sha256
from lustral.networks.weights import read_notes

SCHEMA = 1


def verdicts(records: Sequence[Record], rule: VerdictRule) -> tuple[list[float], list[float]]:
    """The verdicts of ``rule`` on each clean and each adversarial image, in [0, 1]; failed samples count as broken."""
    labels = torch.tensor([record.label for record in records])
    clean = rule(torch.stack([record.clean_logits for record in records], 1), labels)
    robust = rule(torch.stack([record.adversarial_logits for record in records], 1), labels)
    broken = torch.tensor([record.failed for record in records])
    return clean.tolist(), robust.masked_fill(broken, 0.0).tolist()


def rate(values: Sequence[float], rule: VerdictRule, clusters: Clusters = ()) -> Rate:
    """The mean of the verdicts ``values`` with a 95 % interval: Wilson's for binary rules, a bootstrap for others.

    Wilson's interval assumes independent images, so with ``clusters`` (see `dependences`) every rule is bootstrapped.
    """
    return wilson(sum(values), len(values)) if rule.binary and not clusters else bootstrap(values, clusters)


def make_card(
    records: Sequence[Record],
    fingerprint: dict[str, Any],
    costs: Iterable[dict[str, Any]] = (),
    provenance: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The card of ``records``, as plain data.

    Args:
        records: at least one.
        fingerprint: the content of ``fingerprint.json``.
        costs: the cost files of every process and start.
        provenance: when, on which machine and from which code, config and weights the run was made.

    Raises:
        ValueError: if there is no record.
    """
    if not records:
        raise ValueError("There is no record yet, so there is nothing to put on a card: run `cli.py test` first.")
    decides = fingerprint["decides"]
    protocol = decides["protocol"]
    clusters, table = dependences(records), {}
    for rule in all_rules(protocol["verdict_draws"]):
        clean, robust = verdicts(records, rule)
        table[rule.name] = {
            "clean": asdict(rate(clean, rule, clusters)),
            "robust": asdict(rate(robust, rule, clusters)),
            "draws": rule.num_draws,
            "aimed_at": rule.name == decides["attack"]["target"],
        }
    plan, count = decides.get("audit", {}), protocol.get("audit_images", len(records))
    audit, doubts, undecided = audit_records(records, protocol["verdict_draws"], count, decides["seed"], plan)
    graphs = differentiated(decides["attack"], decides["defence"].get("purifier", {}))
    if graphs and "defence" not in graphs:
        doubts.insert(0, f"the attack follows {' and '.join(graphs)}, which is not the gradient of the defence")
    if decides.get("untrained"):
        doubts.insert(0, f"the weights of {', '.join(decides['untrained'])} are random")
    return {
        "schema": SCHEMA,
        "status": _status(doubts, undecided, audit, count, groups := group_section(records)),
        "n": len({record.index for record in records}),
        "indices": list(dict.fromkeys(record.index for record in records)),
        **groups,
        "verdicts": table,
        **level_means(records),
        "cost": total_cost(costs),
        "audit": audit | members(records, decides["attack"]),
        "attack": {**decides["attack"], "threat": decides["threat"], "differentiates": graphs},
        "defence": decides["defence"],
        "protocol": protocol,
        "data": decides.get("data", {}),
        "seed": decides["seed"],
        "rows": decides["rows"],
        "fingerprint": fingerprint["sha256"],
        "provenance": provenance or {},
    }


def _status(
    doubts: Sequence[str], undecided: Sequence[str], audit: Mapping[str, Any], count: int, groups: Mapping[str, Any]
) -> str:
    """The card's status: `ok`, or `suspect`, `unaudited` or `undecided` with the reasons."""
    why = "protocol.audit_images is 0" if count == 0 else "none of the audited images is among these"
    unaudited = [] if audit["num_images"] else [f"nothing says whether the attack is strong ({why})"]
    if doubts:
        return f"suspect: {'; '.join([*doubts, *(f'unaudited: {word}' for word in unaudited)])}"
    if unaudited:
        return f"unaudited: {unaudited[0]}"
    open_questions = []
    if undecided:
        more = f"raise protocol.audit_images to {4 * count}"
        open_questions = [f"{'; '.join(undecided)}, which {audit['num_images']} images cannot tell from chance: {more}"]
    if "too_few_groups" in groups:
        open_questions.append(groups["too_few_groups"])
    return f"undecided: {'; '.join(open_questions)}" if open_questions else "ok"


def _provenance(starts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The provenance of the last start, with an extract for every start, since records may come from several machines.

    It includes the notes of the weights files that the config names (of imported weights: tag, origin and licence).
    """
    if not starts:
        return {}
    short = ("started", "commit", "device", "processes", "command")
    weights = _weights(starts[-1].get("config", {}))
    return {**starts[-1], "weights": weights, "starts": [{name: start.get(name) for name in short} for start in starts]}


def _weights(config: Mapping[str, Any], part: str = "") -> dict[str, Any]:
    """The facts of each weights file that a resolved config names and that exists, by its place in the config."""
    found = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= _weights(value, part if name == "init_args" else f"{part}.{name}".lstrip("."))
        elif name == "weights" and isinstance(value, str) and Path(value).expanduser().is_file():
            found[part] = {"file": value, **_facts(Path(value).expanduser())}
    return found


def _facts(weights: Path) -> dict[str, Any]:
    """The notes of a weights file, or its hash if Lustral did not write it."""
    try:
        return {"notes": read_notes(weights)}
    except (SafetensorError, OSError, ValueError, LookupError, TypeError):
        return {"sha256": sha256(weights)}


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file of the run.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__}")
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} was damaged since it was written ({error}): restore it, or move it away to make the card without "
            "it."
        ) from error
    return content


def write_card(
    run: str | Path,
    keys: Collection[Key] | None = None,
    make: Callable[..., dict[str, Any]] = make_card,
    kind: type[KeyedRecord] = Record,
) -> dict[str, Any]:
    """Make ``run/card.json`` from ``run/records``, ``run/cost`` and ``run/provenance``, and return the card.

    Args:
        run: the run folder.
        keys: (replicate, index) of the records that go into the card; the folder may hold more. None takes all.
        make: takes what `make_card` does, for evaluations of another kind.
        kind: the class of the records.

    Raises:
        ValueError: if a record of ``keys`` is missing, or a file is damaged.
    """
    run = Path(run)
    fingerprint = read_fingerprint(run / "records")
    records = read_records(run / "records", keys, kind)
    if keys is not None and len(records) < len(set(keys)):
        raise ValueError(f"{run / 'records'} lacks {len(set(keys)) - len(records)} of the records asked for.")
    costs = [_read(path) for path in sorted((run / "cost").glob("*.json"))]
    starts = [_read(path) for path in sorted((run / "provenance").glob("test-*.json"))]
    # Leave out starts of another evaluation in this folder; files of older versions lack the fingerprint, and are kept.
    starts = [start for start in starts if start.get("fingerprint") in (None, fingerprint["sha256"])]
    card = make(list(records.values()), fingerprint, costs, _provenance(starts))
    partial = run / f".card.{os.getpid()}"
    partial.write_text(json.dumps(card, indent=1) + "\n")
    partial.replace(run / "card.json")
    return card
