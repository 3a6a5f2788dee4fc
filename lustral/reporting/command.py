"""`python cli.py report`: its options, and what it prints."""

import sys
from collections.abc import Sequence
from pathlib import Path

from lustral.command_line import Parser
from lustral.reporting.build import FORMATS, report, write_report


def run_command(words: Sequence[str]) -> int:
    """Run the subcommand ``report`` with command-line arguments ``words``: print and write the report, and return the
    exit code."""
    parser = Parser(prog="cli.py report", description="Tables and figures of finished runs.")
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="a run folder, or a folder of them")
    parser.add_argument("--format", choices=FORMATS, default="markdown", help="of the table that is printed")
    parser.add_argument("--output", type=Path, help="also write the report in every format, with figures, to a folder")
    options = parser.parse_args(words)
    print(report(options.run_dirs, options.format))
    if options.output is not None:
        for path in write_report(options.run_dirs, options.output):
            print(path, file=sys.stderr)
    return 0
