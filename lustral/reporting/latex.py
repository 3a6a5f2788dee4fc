"""Tables as LaTeX for a paper: booktabs, every special character escaped."""

import re
from collections.abc import Sequence
from itertools import groupby

from lustral.reporting.tables import Column, Table

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "`": r"\textasciigrave{}",
    "|": r"\textbar{}",
    "\N{DAGGER}": r"\textsuperscript{\textdagger}",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
} | {char: f"\\{char}" for char in "&%$#_{}"}

_NORMS = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$"}

_PREAMBLE = r"""% Written by `python cli.py report`. The preamble needs: \usepackage{booktabs,graphicx}
% Tables wider than the text are shrunk to its width.
"""


def escape(text: str) -> str:
    """``text`` with LaTeX's special characters escaped, and words in `backquotes` in typewriter type."""
    pieces = re.split(r"`([^`]*)`", text)
    return "".join(rf"\texttt{{{_escaped(piece)}}}" if i % 2 else _escaped(piece) for i, piece in enumerate(pieces))


def latex(tables: Sequence[Table]) -> str:
    """LaTeX with a table float for each of ``tables``."""
    return _PREAMBLE + "\n".join(["", *(_float(table) for table in tables)])


def latex_figures(figures: Sequence[tuple[str, str]]) -> str:
    """LaTeX with a figure float for each (file stem, caption) pair."""
    return "".join(
        "\n\\begin{figure}[t]\n\\centering\n"
        f"\\includegraphics[width=\\linewidth]{{{stem}.pdf}}\n"
        f"\\caption{{{escape(caption)}}}\n\\label{{fig:{stem}}}\n\\end{{figure}}\n"
        for stem, caption in figures
    )


def _float(table: Table) -> str:
    lines = [r"\begin{table}[t]", r"\centering", r"\small", rf"\caption{{{escape(table.title)}.}}"]
    lines += [rf"\label{{tab:{table.key}}}"]
    if table.rows:
        lines += [
            r"\setlength{\tabcolsep}{4pt}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{''.join('r' if column.numeric else 'l' for column in table.columns)}}}",
            r"\toprule",
            *_header(table.columns),
            r"\midrule",
            *(_row([_cell(cell) for cell in row]) for row in table.rows),
            r"\bottomrule",
            r"\end{tabular}}",
        ]
    lines += [rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize {escape(note)}}}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}", ""])


def _header(columns: Sequence[Column]) -> list[str]:
    """The row of column labels, below a row of group labels if there are groups."""
    labels = _row([escape(column.label) for column in columns])
    if not any(column.group for column in columns):
        return [labels]
    groups, lines, position = [], [], 1
    for group, members in groupby(columns, key=lambda column: column.group):
        width = len(list(members))
        groups += [rf"\multicolumn{{{width}}}{{c}}{{{escape(group)}}}"] if group else [""] * width
        lines += [rf"\cmidrule(lr){{{position}-{position + width - 1}}}"] if group else []
        position += width
    return [_row(groups), "".join(lines), labels]


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(text: str) -> str:
    """A cell, escaped, with norms and minus signs in math mode and suspect runs in bold."""
    if text.startswith("SUSPECT"):
        return rf"\textbf{{{escape(text)}}}"
    norm, _, budget = text.partition(" ")
    if norm in _NORMS and budget:
        return f"{_NORMS[norm]} {escape(budget)}"
    if text == "-":
        return "--"
    return re.sub(r"(?<![\w.])([+-])(?=\d)", r"$\1$", escape(text))


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(char, char) for char in text)
