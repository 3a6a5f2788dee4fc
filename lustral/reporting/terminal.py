"""The main table for the console, narrow enough for 80 columns."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lustral.reporting.runs import Card, aimed_rule
from lustral.reporting.tables import (
    TRANSFERRED,
    cost_cells,
    defence_cost_cells,
    main_rules,
    percent,
    robust_cell,
    status_cells,
)
from lustral.reporting.words import attack_in_short, defence_in_short, threat_in_short


def rich_table(cards: Mapping[str, Card]) -> Table:
    """A table with a block of lines for each run: defence and attack, accuracies with 95 % intervals, cost and status.

    Args:
        cards: the runs' cards by name.
    """
    status, notes = status_cells(cards)
    rules = main_rules(list(cards.values()))
    caption = [
        *notes,
        "Measured here: accuracy in % [95 % interval]. Bold: the rule that the attack aimed at.",
    ]
    if any(not card["verdicts"][rule]["aimed_at"] for card in cards.values() for rule in rules):
        caption.append(f"{TRANSFERRED} transferred: the attack aimed at another rule.")
    table = Table(
        title="Robustness",
        caption=Text("\n".join(caption)),
        caption_justify="left",
        padding=(0, 1, 0, 0),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("run", min_width=20)
    table.add_column("rule", no_wrap=True)
    table.add_column("clean", justify="right", no_wrap=True)
    table.add_column("under attack", justify="right", no_wrap=True)
    for (name, card), word in zip(cards.items(), status, strict=True):
        styles = ["bold" if rule == aimed_rule(card) else "" for rule in rules]
        clean = [percent(card["verdicts"][rule]["clean"]) for rule in rules]
        robust = [robust_cell(card, rule) for rule in rules]
        # A space takes the place of the mark that other cells have, so that the digits are aligned.
        robust = [cell if cell.endswith(TRANSFERRED) else f"{cell} " for cell in robust]
        table.add_row(_description(name, card, word), *(_lines(cells, styles) for cells in (rules, clean, robust)))
    return table


def show_card(run: Path, card: Card, figures: Sequence[str] = ()) -> None:
    """Print the summary at the end of an evaluation: its numbers, the paths of its files, and the next command.

    Args:
        run: the run folder.
        card: the content of its ``card.json``.
        figures: the names of its image files.
    """
    Console(file=sys.stdout, highlight=False).print(rich_table({run.name: card}))
    print(f"{run}: {', '.join(['card.json', 'records', *figures])}")
    print(f"python cli.py report {run}    tables and figures; name several runs to compare them")
    print(f"tensorboard --logdir {run}", flush=True)


def _description(name: str, card: Card, status: str) -> Text:
    attack = card["attack"]
    calls, seconds = cost_cells(card)
    own_calls, own_seconds, _ = defence_cost_cells(card)  # memory would not fit into the line
    return Text.assemble(
        (name, "bold"),
        "\n",
        (status, "green" if status == "ok" else "bold red"),
        f", n = {card['n']}",
        f"\n{threat_in_short(attack['threat'])}, {attack_in_short(attack)}",
        f"\ndefence: {defence_in_short(card['defence'])}",
        (f"\none draw: {own_calls} call{'' if own_calls == '1' else 's'}, {own_seconds} s", "dim"),
        (f"\n{calls} calls, {seconds} s an image\n", "dim"),
    )


def _lines(cells: list[str], styles: list[str]) -> Text:
    return Text("\n").join(Text(cell, style) for cell, style in zip(cells, styles, strict=True))
