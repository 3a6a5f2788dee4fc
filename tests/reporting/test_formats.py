"""Every format says what the card says."""

import csv
import io
import json
import re
from pathlib import Path

import pytest

from lustral.evaluation.cost import total_cost
from lustral.reporting import FORMATS, load_runs, report, rich_table, write_report
from lustral.reporting.latex import escape
from lustral.reporting.tables import defence_cost_cells, percent


@pytest.fixture
def runs(make_run) -> list[Path]:
    """An undefended classifier, a defence, and a run whose attack did not work."""
    return [
        make_run("digits_undefended", 0.98, 0.05, purified=False),
        make_run("digits_diffpure", 0.95, 0.6),
        make_run("digits_weak_100%", 0.97, 0.9, gain=-1.0),
    ]


def card_of(run: Path) -> dict:
    return json.loads((run / "card.json").read_text())


def grid(text: str, heading: str) -> list[dict[str, str]]:
    """A Markdown table as dictionaries."""
    lines = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0].splitlines()
    header, _, *body = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")
    ]
    return [dict(zip(header, row, strict=True)) for row in body]


def test_csv_parses_back_to_the_cards_numbers(runs) -> None:
    rows = list(csv.DictReader(io.StringIO(report(runs, "csv"))))
    cards = {run.name: card_of(run) for run in runs}
    assert len(rows) == sum(len(card["verdicts"]) for card in cards.values())
    for row in rows:
        card = cards[row["run"]]
        entry = card["verdicts"][row["rule"]]
        for kind in ("clean", "robust"):
            parsed = {"value": row[kind], "low": row[f"{kind}_low"], "high": row[f"{kind}_high"]}
            assert {end: float(value) for end, value in parsed.items()} == entry[kind]
        assert int(row["n"]) == card["n"]
        assert int(row["aimed_at"]) == entry["aimed_at"]
        assert float(row["seconds_per_image"]) == card["cost"]["seconds_per_image"] == 0.5
        assert float(row["eps"]) == 8 / 255
        assert row["status"] == card["status"]


def test_json_is_the_cards(runs) -> None:
    assert json.loads(report(runs, "json")) == [{"name": run.name, "card": card_of(run)} for run in runs]


def test_markdown_shows_the_cards_numbers(runs) -> None:
    text = report(runs)
    main, rules = grid(text, "Results"), grid(text, "All verdict rules")
    for run, row in zip(runs, main, strict=True):
        card = card_of(run)
        assert row["Run"] == run.name
        assert row["n"] == str(card["n"])
        assert row["clean, expected"] == percent(card["verdicts"]["expected"]["clean"])
        assert row["robust, expected"] == percent(card["verdicts"]["expected"]["robust"])
        assert row["robust, majority"] == percent(card["verdicts"]["majority"]["robust"]) + "†"
        assert row["Calls"] == "2,688"
    assert {row["Attack"] for row in rules if row["Rule"] == "expected"} == {"aimed at"}
    assert {row["Attack"] for row in rules if row["Rule"] != "expected"} == {"transferred"}
    settings = grid(text, "Settings")
    assert settings[0]["Defence"] == "none"
    assert settings[1]["Defence"] == "DiffPure t*=100, 10 steps, sigma=0.4, network_calls=10, EulerMaruyama"
    assert settings[1]["Threat"] == "linf 8/255"
    assert settings[1]["Attack"] == "PGD 20 x EOT 8, exact"
    assert settings[1]["Classifier"] == "WideResNet-10-1"
    assert settings[1]["Data"] == "digits"


def test_markdown_is_aligned(runs) -> None:
    for section in report(runs).split("\n## ")[1:]:
        assert len({len(line) for line in section.splitlines() if line.startswith("|")}) <= 1


def test_a_rule_aimed_at_gets_its_columns(make_run) -> None:
    text = report([make_run("a", target="worst"), make_run("b", target="majority")])
    worst, majority = grid(text, "Results")
    assert not worst["robust, worst"].endswith("†")
    assert worst["robust, majority"].endswith("†")
    assert not majority["robust, majority"].endswith("†")
    assert majority["robust, worst"].endswith("†")


def test_a_suspect_run_says_why(runs) -> None:
    reason = "the loss does not rise with the attack's steps"
    text = report(runs)
    assert [row["Status"] for row in grid(text, "Results")] == ["ok", "ok", "SUSPECT [1]"]
    assert f"[1] digits_weak_100% is suspect: {reason}." in text
    tex = report(runs, "latex")
    assert r"\textbf{SUSPECT [1]}" in tex
    assert rf"[1] digits\_weak\_100\% is suspect: {reason}." in tex


def test_the_audit_is_shown_with_intervals(runs) -> None:
    row = grid(report(runs), "Audit")[1]
    audit = card_of(runs[1])["audit"]["expected_accuracy"]
    assert row["Images"] == "16"
    for heading, name in (("the attack", "attack"), ("BPDA", "bpda"), ("known noise", "known_noise")):
        assert re.fullmatch(rf"{100 * audit[name]:.1f} \[\d+\.\d, \d+\.\d\]", row[heading])


def test_the_cost_of_defence_attack_and_audit(runs) -> None:
    text = report(runs)
    for run, row in zip(runs, grid(text, "Cost"), strict=True):
        assert row == {
            "Run": run.name,
            "calls, defence": "11",
            "seconds, defence": "0.0025",
            "MiB, defence": "0.5",
            "calls, attack and verdicts": "2,688",
            "seconds, attack and verdicts": "0.5",
            "MiB, attack and verdicts": "1.0",
            "Audit (%)": "150",
        }
    assert r"\label{tab:cost}" in report(runs, "latex")


def test_a_cost_that_was_not_measured_is_a_dash(runs) -> None:
    """Cards that an older version made lack the sections, and new ones of its cost lines have None."""
    old, none, empty = (card_of(run) for run in runs)
    del old["cost"]["defence"], old["cost"]["audit"]
    none["cost"] |= {"defence": None, "audit": {**none["cost"]["audit"], "images": 0}}
    empty["cost"] = total_cost([])
    for run, card in zip(runs, (old, none, empty), strict=True):
        (run / "card.json").write_text(json.dumps(card))
    text = report(runs)
    rows = [list(row.values())[1:] for row in grid(text, "Cost")]
    attack = ["2,688", "0.5", "1.0"]
    assert rows == [["-"] * 3 + attack + ["-"], ["-"] * 3 + attack + ["-"], ["-"] * 7]
    assert [row["Calls"] for row in grid(text, "Results")] == ["2,688", "2,688", "-"]


def test_calls_of_purifications_that_differ_keep_a_digit() -> None:
    cost = {"network_calls_per_image": 1034.26, "seconds_per_image": 12.345, "peak_memory_mib": 20_000.0}
    assert defence_cost_cells({"cost": {"defence": cost}}) == ("1,034.3", "12.3", "20,000.0")


def test_latex_is_escaped_and_well_formed(runs) -> None:
    tex = report(runs, "latex")
    assert "digits\\_undefended" in tex
    assert r"$\ell_\infty$ 8/255" in tex
    assert r"\toprule" in tex
    assert r"\cmidrule(lr){4-5}\cmidrule(lr){6-7}" in tex
    body = "\n".join(line for line in tex.splitlines() if not line.startswith("%"))
    body = body.replace("{!}{%", "{!}{")  # the one comment sign that ends a line
    assert not re.search(r"(?<!\\)[%#]", body)
    assert not re.search(r"(?<![\\{])_", re.sub(r"\$[^$]*\$", "", body))
    plain = body.replace(r"\{", "").replace(r"\}", "")
    assert plain.count("{") == plain.count("}")
    assert all(ord(char) < 128 for char in body)
    for tabular in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", body, re.DOTALL):
        for line in tabular[1].splitlines():
            if line.endswith(r"\\"):
                spans = sum(int(span) - 1 for span in re.findall(r"multicolumn\{(\d+)\}", line))
                assert len(re.findall(r"(?<!\\)&", line)) + 1 + spans == len(tabular[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b & 5 % #1 $x", r"a\_b \& 5 \% \#1 \$x"),
        (r"{\x}^~", r"\{\textbackslash{}x\}\textasciicircum{}\textasciitilde{}"),
        ("`one_shot` rule", r"\texttt{one\_shot} rule"),
        ("1.0 ± 0.2†", r"1.0 $\pm$ 0.2\textsuperscript{\textdagger}"),
    ],
)
def test_escape(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_the_console_table_has_every_run(runs) -> None:
    from rich.console import Console

    cards = {run.name: run.card for run in load_runs(runs)}
    for width in (80, 160):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(rich_table(cards))
        shown = console.export_text()
        for name, card in cards.items():
            assert name in shown
            assert percent(card["verdicts"]["expected"]["robust"]) in shown
            assert percent(card["verdicts"]["majority"]["clean"]) in shown
        assert shown.count("one draw: 11 calls, 0.0025 s") == len(cards)
        assert "SUSPECT [1]" in shown
        assert "digits_weak_100% is suspect" in shown


def test_write_report_writes_texts_and_figures(runs, tmp_path) -> None:
    folder = tmp_path / "report"
    written = write_report(runs, folder)
    assert sorted(written) == sorted(folder.iterdir())
    names = {path.name for path in written}
    figures = {f"{stem}.{end}" for stem in ("accuracy", "audit", "draws_8", "frontier") for end in ("png", "pdf")}
    assert names == {"report.md", "report.tex", "report.csv", "report.json"} | figures
    assert (folder / "report.csv").read_text() == report(runs, "csv")
    assert "](accuracy.png)" in (folder / "report.md").read_text()
    assert "{accuracy.pdf}" in (folder / "report.tex").read_text()
    first = {path.name: path.read_bytes() for path in written}
    assert {path.name: path.read_bytes() for path in write_report(runs, folder)} == first


def test_a_report_that_cannot_be_written_says_so(runs, tmp_path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError, match="choose another folder with --output"):
        write_report(runs, tmp_path / "taken" / "report")


def test_an_unknown_format_is_refused(runs) -> None:
    assert FORMATS == ("markdown", "latex", "csv", "json")
    with pytest.raises(ValueError, match="it may be markdown, latex, csv, json"):
        report(runs, "html")
