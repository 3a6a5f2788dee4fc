"""Tables as Markdown that also reads well in a terminal."""

from collections.abc import Sequence

from rich.cells import cell_len

from lustral.reporting.tables import Column, Table


def markdown(tables: Sequence[Table]) -> str:
    """Markdown with a section for each of ``tables``."""
    return "# Robustness report\n\n" + "\n".join(_section(table) for table in tables)


def markdown_figures(figures: Sequence[tuple[str, str]]) -> str:
    """A Markdown section with the figures given as (file stem, caption) pairs."""
    shown = "\n".join(f"![{caption}]({stem}.png)\n\n{caption}\n" for stem, caption in figures)
    return f"\n## Figures\n\n{shown}"


def _section(table: Table) -> str:
    parts = [f"## {table.title}\n"]
    if table.rows:
        parts.append(_grid(table) + "\n")
    parts += [f"{note}\n" for note in table.notes]
    return "\n".join(parts)


def _grid(table: Table) -> str:
    header = [_heading(column) for column in table.columns]
    body = [[cell.replace("|", "\\|") for cell in row] for row in table.rows]
    widths = [max(3, *(cell_len(row[i]) for row in [header, *body])) for i in range(len(header))]
    right = [column.numeric for column in table.columns]
    rule = ["-" * (width - 1) + (":" if numeric else "-") for width, numeric in zip(widths, right, strict=True)]
    return "\n".join(_line(cells, widths, right) for cells in [header, rule, *body])


def _heading(column: Column) -> str:
    return f"{column.label}, {column.group}" if column.group else column.label


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = []
    for cell, width, numeric in zip(cells, widths, right, strict=True):
        space = " " * (width - cell_len(cell))
        padded.append(space + cell if numeric else cell + space)
    return f"| {' | '.join(padded)} |"
