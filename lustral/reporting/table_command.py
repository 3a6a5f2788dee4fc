"""`python cli.py table`: a paper's table, row by row, and what was measured beside what was published."""

import re
import sys
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lustral.command_line import Parser
from lustral.reporting.beside import Measured, beside
from lustral.reporting.build import write_report
from lustral.reporting.markdown import markdown
from lustral.reporting.runs import load_runs
from lustral.tables import HAVE_A_CARD, SET_BY_JOBS, Job, PaperTable, Row, call, fits, make_jobs, missing, read_table

STOPPED = (130, 143)
"""Exit codes of a process that was told to stop."""
_PIECE = re.compile(r"^(\d+)(?:-(\d+))?$")
_MANY = 10_000
"""More rows or seeds than anybody means."""

_HELP = """A paper's table: every row is an evaluation, with what was published of it beside. Rows that ended are not
run again, one that was interrupted goes on where it stopped. Options of `cli.py test` may follow after --, and hold
for every row that is run: -- --data.num_test 100 -c configs/trainer/ddp.yaml"""


def run_command(words: Sequence[str], cli: Path) -> int:
    """List a table's rows, run those that are asked for, and report; returns the exit code: 0, 1 if a row failed, 3
    if samples met NaN.

    Args:
        words: of the command line.
        cli: the file whose ``test`` evaluates.
    """
    own, more = _split(words)
    parser = Parser(prog="cli.py table", description=_HELP)
    parser.add_argument("table", type=Path, metavar="FILE", help="a table, such as configs/tables/ssni_cifar10.yaml")
    parser.add_argument("--list", action="store_true", help="only list the rows, each with its command")
    parser.add_argument("--report", action="store_true", help="only report what was measured so far")
    parser.add_argument("--rows", type=_numbers, help="the rows to run, such as 3,5 or 2-7; all if left out")
    parser.add_argument("--seeds", type=_numbers, default=[0], help="remake the attack for each, such as 0,1,2")
    parser.add_argument("--output", type=Path, help="where the rows' folders are made; runs/tables/<table> if left out")
    options = parser.parse_args(own)
    table = read_table(options.table)
    folder = (options.output or Path("runs") / "tables" / table.name).expanduser()
    jobs = make_jobs(table.rows, options.seeds, folder, more)
    numbers = [row.number for row in table.rows] if options.rows is None else options.rows
    asked = {row.number for row in table.chosen(numbers)}
    _show(table, [job for job in jobs if job.row.number in asked])
    codes: dict[str, int] = {}
    if not (options.list or options.report):
        codes = _run([job for job in jobs if job.row.number in asked], table.needs, cli)
    if not options.list:
        _report(table, jobs, folder)
    return _exit_code(codes)


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our own words, and those of the rows, which follow ``--``.

    Raises:
        ValueError: if the latter have an option that a row sets itself.
    """
    words = list(words)
    at = words.index("--") if "--" in words else len(words)
    own, more = words[:at], words[at + 1 :]
    for option in (f"--{name}" for name in SET_BY_JOBS):
        if any(word.partition("=")[0] == option for word in more):
            better = "--output" if option.endswith("_dir") else "--seeds"
            raise ValueError(f"{option} is set for each row by itself: give {better} to `cli.py table` instead.")
    return own, more


def _numbers(text: str) -> list[int]:
    """Such as ``0,3,5-7``."""
    numbers: list[int] = []
    for piece in text.split(","):
        match = _PIECE.match(piece.strip())
        last = int(match[2] or match[1]) if match else -1
        if match is None or last < int(match[1]):
            raise ArgumentTypeError(f"{text!r} are no numbers, such as 3,5 or 2-7")
        if last - int(match[1]) >= _MANY:
            raise ArgumentTypeError(f"{text!r} are too many numbers")
        numbers += range(int(match[1]), last + 1)
    return list(dict.fromkeys(numbers))


def _show(table: PaperTable, jobs: Sequence[Job]) -> None:
    print(f"{table.title}\n{table.source}\n")
    for job in jobs:
        row = job.row
        seed = f", seed {job.seed}" if job.seed else ""
        print(
            f"{row.number}  {row.name}{seed} ({job.state}): {row.defence}, {row.classifier}, {row.threat}, {row.attack}"
        )
        print(f"   {job.command}")
    for other in table.others:
        print(f"-  {other.name} (published only): {other.defence}, {other.classifier}, {other.threat}, {other.attack}")
    for file, command in missing(table.needs).items():
        print(f"\nfirst: python cli.py {command}    (makes {file})")
    print(flush=True)


def _run(jobs: Sequence[Job], needs: Mapping[str, str], cli: Path) -> dict[str, int]:
    """Exit codes by folder of the jobs that were run."""
    todo = [job for job in jobs if not job.done]
    for file, command in missing(needs).items() if todo else ():
        print(f"== python cli.py {command}", file=sys.stderr, flush=True)
        if (code := call(cli, command.split())) != 0 or not Path(file).is_file():
            _stop_if_told(code)
            raise ValueError(f"`python cli.py {command}` did not make {file} (exit code {code}); its reason is above.")
    codes = {}
    for number, job in enumerate(todo, 1):
        print(f"== row {job.row.number} ({number} of {len(todo)}): {job.command}", file=sys.stderr, flush=True)
        codes[str(job.folder)] = code = job.run(cli)
        _stop_if_told(code)
    return codes


def _stop_if_told(code: int) -> None:
    """What was said to the row was said to the table."""
    if code in STOPPED:
        print("error: The table was stopped; the same command goes on where it was.", file=sys.stderr)
        raise SystemExit(code)


def _report(table: PaperTable, jobs: Sequence[Job], folder: Path) -> None:
    """Print measured beside published, and write the whole report of the rows that have a card."""
    runs = {run.folder.resolve(): run for run in load_runs(finished)} if (finished := _finished(jobs)) else {}
    rows: list[Measured] = []
    for row in table.rows:
        folders = [job.folder.resolve() for job in jobs if job.row is row]
        rows.append((row, [runs[folder] for folder in folders if folder in runs]))
    others: list[Measured] = [(other, []) for other in table.others]
    shown = beside([*rows, *others], key="table", title=table.title)
    print(markdown([replace(shown, notes=[*shown.notes, *_other_settings(rows)])]))
    if finished:
        for path in write_report(finished, folder / "report"):
            print(path, file=sys.stderr)


def _other_settings(rows: Sequence[Measured]) -> list[str]:
    """A note on rows whose runs are not what they choose: run with options after ``--``, or before the file changed."""
    others = [
        row.name
        for row, runs in rows
        if isinstance(row, Row)
        and not all(fits(row.choice, run.card.get("provenance", {}).get("config", {})) for run in runs)
    ]
    told = "measured with other settings than the table chooses (options after --, or files that have changed since). "
    return [f"{', '.join(others)}: {told}What was published is not of that evaluation."] if others else []


def _finished(jobs: Sequence[Job]) -> list[Path]:
    return [job.folder for job in jobs if (job.folder / "card.json").is_file()]


def _exit_code(codes: Mapping[str, int]) -> int:
    failed = [folder for folder, code in codes.items() if code not in HAVE_A_CARD]
    for folder in failed:
        print(
            f"error: {folder} failed with exit code {codes[folder]}; its reason is above. (If the row was changed "
            "after its folder was made, move that away, or choose others with --output.)",
            file=sys.stderr,
        )
    return 1 if failed else max(codes.values(), default=0)
