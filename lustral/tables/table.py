"""A paper's table as data: rows that choose an evaluation, with what was published of each beside.

A file of ``configs/tables`` looks so (paths are relative to it)::

    title: SSNI on CIFAR-10, linf 8/255
    source: Sun et al. 2025 (SSNI), Table 1
    recipe: ../eval/cifar10.yaml
    needs:                                     # files that must be there first, and the command that makes each
      runs/reference/cifar10_eps/reference.json: validate -c configs/reference/cifar10_eps.yaml
    all:                                       # what every row has, unless it says otherwise
      dataset: CIFAR-10
      classifier: WRN-28-10
      threat: linf 8/255
      choose: {threat: ../threat/linf_8_255.yaml}
      published: {verdict: one_shot, evidence: seed}
    rows:
      - name: ssni_gnsp                        # the run's folder
        defence: SSNI-N over GNSP              # as printed
        attack: PGD+EOT, surrogate
        choose: {purifier: ../purifier/cifar10_ssni_gnsp.yaml, attack: ../attack/surrogate_ssni_gnsp.yaml}
        options: {model.purifier.levels.bias: 5}
        layers: [../layer/cifar10_wrn70-16.yaml]
        published: {clean: 93.55 ± 0.55, robust: 56.45 ± 0.28, note: "..."}
    others:                                    # published beside, of methods that are not here: nothing is run
      - {name: pixel_defend, defence: PixelDefend, attack: BPDA, published: {clean: 95.00, robust: 9.00}}
"""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lustral.evaluation import all_rules
from lustral.tables.choice import GROUPS, SET_BY_JOBS, Choice

EVIDENCE = {
    "seed": "read in a paper at hand",
    "code": "read in the authors' code or in a file that they published",
    "issue": "confirmed in a public thread on the authors' code",
}
"""What the tags mean. A number that is only recalled has no place in a table."""

_TABLE_KEYS = ("title", "source", "recipe", "needs", "all", "rows", "others")
_ROW_KEYS = ("name", "defence", "dataset", "classifier", "threat", "attack", "choose", "options", "layers", "published")
_OTHER_KEYS = ("name", "defence", "dataset", "classifier", "threat", "attack", "published")
_WORDS = ("defence", "dataset", "classifier", "threat", "attack")
_MERGED = ("choose", "options", "published")
_PUBLISHED_KEYS = ("clean", "robust", "verdict", "source", "evidence", "note")
_NUMBER = re.compile(r"^(\d+(?:\.\d+)?)(?: *(?:±|\+-) *(\d+(?:\.\d+)?))?$")
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_TAKEN = re.compile(r"report|.*-seed\d+")
"""Names of folders that a table makes beside those of its rows."""

Value = tuple[float, float | None]
"""A printed accuracy in per cent and its own +-; None: not printed."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would keep the last without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class Published:
    """What a source printed of a row.

    Attributes:
        clean: on clean images; None if it gives none.
        robust: under the row's attack; None if it gives none.
        verdict: the verdict rule that it belongs to, such as "one_shot".
        source: who published it, and where.
        evidence: how it was obtained, a key of `EVIDENCE`.
        note: what else a reader has to know; may be empty.
    """

    clean: Value | None
    robust: Value | None
    verdict: str
    source: str
    evidence: str
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One line of a table. ``number`` counts from 1; the words are the source's."""

    number: int
    name: str
    defence: str
    dataset: str
    classifier: str
    threat: str
    attack: str
    choice: Choice
    published: Published | None


@dataclass(frozen=True)
class Other:
    """A line of a table that cannot be run, as its method is not here: only what was published, in the source's
    words."""

    name: str
    defence: str
    dataset: str
    classifier: str
    threat: str
    attack: str
    published: Published


@dataclass(frozen=True)
class PaperTable:
    """A whole table.

    Attributes:
        name: its file's, without the ending.
        title: what it shows, and of which source.
        rows: in its order.
        needs: the words of the command that makes each file which the rows cannot do without.
        others: the lines that stand beside the rows and cannot be run.
    """

    name: str
    title: str
    source: str
    rows: tuple[Row, ...]
    needs: Mapping[str, str]
    others: tuple[Other, ...] = ()

    def chosen(self, numbers: Collection[int]) -> list[Row]:
        """The rows of these numbers, in the table's order.

        Raises:
            ValueError: if there is no such row.
        """
        unknown = sorted(set(numbers) - {row.number for row in self.rows})
        if unknown:
            raise ValueError(f"{self.name} has no row {unknown[0]}: its rows are 1 to {len(self.rows)}.")
        return [row for row in self.rows if row.number in numbers]


def read_table(path: str | Path) -> PaperTable:
    """The table of a file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no table, in a sentence that names the file and the row.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no table {path} (looked in {Path.cwd()}); see configs/tables.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no table: {getattr(error, 'problem', None) or 'it is no YAML'}.") from error
    _check_keys(path, "the table", content, _TABLE_KEYS, ("title", "source", "recipe", "rows"))
    everywhere, rows, needs = content.get("all") or {}, content["rows"], content.get("needs") or {}
    _check_keys(path, "all", everywhere, _ROW_KEYS)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: rows is {rows!r}; it must be a list with a row or more.")
    if not isinstance(needs, dict) or not all(isinstance(word, str) for pair in needs.items() for word in pair):
        raise ValueError(f"{path}: needs is {needs!r}; it must be files with the command that makes each.")
    recipe, source = path.parent / str(content["recipe"]), str(content["source"])
    made = tuple(_row(path, number, given, everywhere, recipe, source) for number, given in enumerate(rows, 1))
    others = content.get("others") or []
    if not isinstance(others, list):
        raise ValueError(f"{path}: others is {others!r}; it must be a list.")
    beside = tuple(_other(path, number, given, everywhere, source) for number, given in enumerate(others, 1))
    names = [row.name for row in (*made, *beside)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path} has two rows {twice[0]}: each needs a folder of its own.")
    return PaperTable(path.stem, str(content["title"]), source, made, needs, beside)


def read_tables(folder: str | Path) -> list[PaperTable]:
    """Every table of a folder, by name."""
    return [read_table(path) for path in sorted(Path(folder).glob("*.yaml"))]


def _row(path: Path, number: int, given: Any, everywhere: Mapping[str, Any], recipe: Path, source: str) -> Row:
    where = f"row {number}"
    _check_keys(path, where, given, _ROW_KEYS, ("name",))
    merged = _merged(path, where, given, everywhere)
    layers = merged.get("layers") or []
    if not isinstance(layers, list):
        raise ValueError(f"{path}: layers of {where} is {layers!r}; it must be a list of files.")
    if _TAKEN.fullmatch(str(merged["name"])):
        raise ValueError(
            f"{path}: {where} is called {merged['name']}, as a folder that the table makes besides: choose another."
        )
    for option in merged["options"]:
        if not isinstance(option, str) or option.startswith("-"):
            raise ValueError(
                f"{path}: {where} has an option {option!r}; it must be dotted, as in model.purifier.t_star."
            )
        if option in SET_BY_JOBS:
            raise ValueError(f"{path}: {where} sets {option}, which `cli.py table` sets for each row by itself.")
    _check_keys(path, f"choose of {where}", merged["choose"], tuple(GROUPS))
    _check_keys(path, f"published of {where}", merged["published"], _PUBLISHED_KEYS)
    choice = Choice(
        recipe,
        tuple(path.parent / str(layer) for layer in layers),
        {group: path.parent / str(file) for group, file in merged["choose"].items()},
        merged["options"],
    )
    for file in choice.files():
        if not file.is_file():
            raise ValueError(f"{path}: {where} chooses {file}, and there is no such file.")
    published = _published(path, where, merged["published"], source)
    words = {key: str(merged[key]) for key in ("name", *_WORDS)}
    return Row(number=number, choice=choice, published=published, **words)


def _other(path: Path, number: int, given: Any, everywhere: Mapping[str, Any], source: str) -> Other:
    where = f"other {number}"
    _check_keys(path, where, given, _OTHER_KEYS, ("name", "published"))
    merged = _merged(path, where, given, everywhere)
    _check_keys(path, f"published of {where}", merged["published"], _PUBLISHED_KEYS)
    published = _published(path, where, merged["published"], source)
    if published is None:
        raise ValueError(f"{path}: {where} has no published number, and nothing else to show.")
    return Other(published=published, **{key: str(merged[key]) for key in ("name", *_WORDS)})


def _merged(path: Path, where: str, given: Mapping[str, Any], everywhere: Mapping[str, Any]) -> dict[str, Any]:
    """What a line says, and all lines where it says nothing else; it has a name and all words."""
    merged = {**everywhere, **given}
    for key in _MERGED:
        merged[key] = {}
        for whose, said in (("all", everywhere.get(key)), (where, given.get(key))):
            if not isinstance(said, (dict, type(None))):
                raise ValueError(f"{path}: {key} of {whose} is {said!r}; it must be keys with values.")
            merged[key] |= said or {}
    missing = [key for key in _WORDS if key not in merged]
    if missing:
        raise ValueError(f"{path}: {where} says no {missing[0]}: give it there, or in `all`.")
    if not isinstance(merged["name"], (str, int)) or not _NAME.fullmatch(str(merged["name"])):
        raise ValueError(f"{path}: {where} is called {merged['name']!r}, which cannot name a folder.")
    return merged


def _published(path: Path, where: str, given: Mapping[str, Any], source: str) -> Published | None:
    clean, robust = (_value(path, where, given.get(kind)) for kind in ("clean", "robust"))
    if clean is None and robust is None:
        return None
    evidence = given.get("evidence")
    if not isinstance(evidence, str) or evidence not in EVIDENCE:
        raise ValueError(f"{path}: the evidence of {where} is {evidence!r}; it may be {', '.join(EVIDENCE)}.")
    if "verdict" not in given:
        raise ValueError(f"{path}: {where} does not say under which verdict rule its numbers were published.")
    rules = [rule.name for rule in all_rules(1)]
    if given["verdict"] not in rules:
        raise ValueError(f"{path}: the verdict of {where} is {given['verdict']!r}; it may be {', '.join(rules)}.")
    told = str(given.get("source", source)), str(evidence), str(given.get("note") or "")
    return Published(clean, robust, str(given["verdict"]), *told)


def _value(path: Path, where: str, given: Any) -> Value | None:
    if given is None:
        return None
    match = _NUMBER.match(str(given))
    if match is None or float(match[1]) > 100:
        raise ValueError(f"{path}: {given!r} of {where} is no accuracy in per cent, such as 46.84 ± 1.44.")
    return float(match[1]), None if match[2] is None else float(match[2])


def _check_keys(path: Path, where: str, given: Any, known: Sequence[str], needed: Collection[str] = ()) -> None:
    """Refuse anything but a dict with known keys, and all those that are needed."""
    if not isinstance(given, dict):
        raise ValueError(f"{path}: {where} is {given!r}; it must be keys with values.")
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {close[0]}?" if close else f"it may have {', '.join(known)}."
            raise ValueError(f"{path}: {where} has no {key}; {hint}")
    for key in needed:
        if key not in given:
            raise ValueError(f"{path}: {where} lacks {key}.")
