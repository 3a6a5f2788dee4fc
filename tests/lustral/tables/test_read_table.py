"""Tables are read as they stand in their files, or refused in a sentence that names the file and the row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lustral.tables import Published, read_table, read_tables
from tests.lustral.tables.conftest import CONTENT

Write = Callable[..., Path]
ONE, TWO = CONTENT["rows"]
OTHER = {"name": "three", "defence": "PixelDefend", "published": {"clean": 95, "robust": "9.00"}}


def test_a_table_is_read(write_table: Write) -> None:
    table = read_table(write_table(needs={"runs/x.json": "validate -c configs/reference/digits_eps.yaml"}))
    assert (table.name, table.title, table.source) == ("small", "Small", "Somebody 2026, Table 1")
    assert table.needs == {"runs/x.json": "validate -c configs/reference/digits_eps.yaml"}
    one, two = table.rows
    assert (one.number, one.name, one.defence, one.classifier) == (1, "one", "DiffPure", "WRN-10-1")
    assert (two.number, two.name, two.defence, two.classifier) == (2, "two", "none", "another")
    told = "one_shot", "Somebody 2026, Table 1", "seed"
    assert one.published == Published((90.1, 0.18), (56.0, None), *told)
    assert two.published is None, "no number, whatever is said of it"
    assert [path.name for path in one.choice.files()] == ["digits.yaml", "digits_diffpure.yaml"]
    assert [path.name for path in two.choice.files()] == ["digits.yaml", "layer.yaml", "none.yaml", "pgd20.yaml"]
    assert two.choice.options == {"model.attack.num_steps": 3}
    assert [row.name for row in table.chosen([2])] == ["two"]
    with pytest.raises(ValueError, match="small has no row 3: its rows are 1 to 2"):
        table.chosen([1, 3])


def test_a_row_may_say_otherwise_than_all_of_them(write_table: Write) -> None:
    published = {"robust": "39.86", "verdict": "majority", "evidence": "issue", "source": "a thread", "note": "so"}
    path = write_table(rows=[{**ONE, "published": published}])
    expected = Published(None, (39.86, None), "majority", "a thread", "issue", "so")
    assert read_table(path).rows[0].published == expected


def test_what_is_not_here_stands_beside(write_table: Write) -> None:
    table = read_table(write_table(others=[{**OTHER, "attack": "BPDA"}]))
    assert len(table.rows) == 2
    (other,) = table.others
    assert (other.name, other.defence, other.classifier, other.attack) == ("three", "PixelDefend", "WRN-10-1", "BPDA")
    told = "one_shot", "Somebody 2026, Table 1", "seed"
    assert other.published == Published((95.0, None), (9.0, None), *told)


def test_the_tables_of_a_folder_are_read_by_name(write_table: Write) -> None:
    path = write_table()
    path.with_name("another.yaml").write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    assert [table.name for table in read_tables(path.parent)] == ["another", "small"]


def _all(**changes: Any) -> dict[str, Any]:
    return {"all": {**CONTENT["all"], **changes}}


def _one(**changes: Any) -> dict[str, Any]:
    return {"rows": [{**ONE, **changes}, TWO]}


REFUSED = [
    ({"tilte": "x"}, "the table has no tilte; did you mean title?"),
    ({"zzz": "x"}, "the table has no zzz; it may have title, source, recipe, needs, all, rows, others."),
    ({"rows": []}, "rows is []; it must be a list with a row or more."),
    ({"rows": {"a": 1}}, "it must be a list with a row or more."),
    ({"rows": ["one"]}, "row 1 is 'one'; it must be keys with values."),
    ({"rows": [{"defence": "x"}]}, "row 1 lacks name."),
    ({"rows": [ONE, TWO, {**TWO, "name": "one"}]}, "has two rows one: each needs a folder of its own."),
    (_one(name="a/b"), "row 1 is called 'a/b', which cannot name a folder."),
    (_one(name="../up"), "row 1 is called '../up', which cannot name a folder."),
    (_one(name=None), "row 1 is called None, which cannot name a folder."),
    (_one(name="one\n"), "row 1 is called 'one\\n', which cannot name a folder."),
    (_one(name="report"), "row 1 is called report, as a folder that the table makes besides"),
    (_one(name="one-seed1"), "row 1 is called one-seed1, as a folder that the table makes besides"),
    (_one(options={"model.seed": 3}), "row 1 sets model.seed, which `cli.py table` sets for each row by itself."),
    (_one(options={"trainer.default_root_dir": "x"}), "row 1 sets trainer.default_root_dir, which"),
    (_one(options={"--model.rows": 3}), "row 1 has an option '--model.rows'; it must be dotted"),
    (_one(options={3: 3}), "row 1 has an option 3; it must be dotted"),
    (_one(published={"clean": 90, "evidence": ["seed"]}), "the evidence of row 1 is ['seed']; it may be seed"),
    (_one(published={"clean": 90, "verdict": "vote"}), "the verdict of row 1 is 'vote'; it may be one_shot, "),
    (_one(defense="x"), "row 1 has no defense; did you mean defence?"),
    (_one(choose={"purifer": "x.yaml"}), "choose of row 1 has no purifer; did you mean purifier?"),
    (_one(choose={"purifier": "x.yaml"}), "x.yaml, and there is no such file."),
    (_one(choose=["x"]), "choose of row 1 is ['x']; it must be keys with values."),
    (_one(options=["x"]), "options of row 1 is ['x']; it must be keys with values."),
    (_one(layers=["x.yaml"]), "row 1 chooses"),
    (_one(layers="x.yaml"), "layers of row 1 is 'x.yaml'; it must be a list of files."),
    (_one(published={"clear": 90}), "published of row 1 has no clear; did you mean clean?"),
    (_one(published={"clean": 101}), "101 of row 1 is no accuracy in per cent, such as 46.84 ± 1.44."),
    (_one(published={"clean": "0.9?"}), "'0.9?' of row 1 is no accuracy in per cent"),
    (_one(published={"clean": 90, "evidence": "rec"}), "the evidence of row 1 is 'rec'; it may be seed, code, issue."),
    ({**_all(published={"evidence": "seed"}), **_one()}, "row 1 does not say under which verdict rule"),
    (_all(published={"verdict": "one_shot"}), "the evidence of row 1 is None; it may be seed, code, issue."),
    (_all(choose={"purifier": "nowhere.yaml"}), "row 1 chooses"),
    (_all(treat="x"), "all has no treat; did you mean threat?"),
    ({"all": {"dataset": "digits"}}, "row 1 says no classifier: give it there, or in `all`."),
    ({"needs": ["x"]}, "needs is ['x']; it must be files with the command that makes each."),
    ({"needs": {"x": 3}}, "needs is {'x': 3}; it must be files with the command that makes each."),
    ({"recipe": "../eval/nowhere.yaml"}, "nowhere.yaml, and there is no such file."),
    ({"others": {"name": "x"}}, "others is {'name': 'x'}; it must be a list."),
    ({"others": [OTHER, OTHER]}, "has two rows three"),
    ({"others": [{**OTHER, "name": "one"}]}, "has two rows one"),
    ({"others": [{**OTHER, "choose": {}}]}, "other 1 has no choose"),
    ({"others": [{**OTHER, "published": {"note": "x"}}]}, "other 1 has no published number, and nothing else to show."),
    ({"others": [{"name": "three", "published": {"clean": 95}}]}, "other 1 says no defence"),
    ({"all": ["x"]}, "all is ['x']; it must be keys with values."),
]


@pytest.mark.parametrize(("changes", "told"), REFUSED, ids=[told for _, told in REFUSED])
def test_a_bad_table_is_refused(changes: dict[str, Any], told: str, write_table: Write) -> None:
    path = write_table(**changes)
    with pytest.raises(ValueError) as refused:
        read_table(path)
    assert str(path) in str(refused.value)
    assert told in str(refused.value)


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b"a: [", b"- 1\n", b"", b"title: x\nsource: y\nrows: []\n"])
def test_what_is_no_table_is_refused(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "no.yaml"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=r"no\.yaml"):
        read_table(path)


def test_a_key_that_is_given_twice_is_refused(write_table: Write) -> None:
    """YAML would keep the last, and lose a number."""
    path = write_table()
    path.write_text(path.read_text(encoding="utf-8") + "rows: []\n", encoding="utf-8")
    with pytest.raises(ValueError, match="is no table: rows is given twice"):
        read_table(path)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no table .*nowhere.yaml .*; see configs/tables."):
        read_table(tmp_path / "nowhere.yaml")
