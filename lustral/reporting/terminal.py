"""The main table for the console."""

from collections.abc import Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from lustral.reporting.runs import Card, aimed_rule
from lustral.reporting.tables import TRANSFERRED, cost_cells, main_rules, percent, robust_cell, status_cells
from lustral.reporting.words import attack_in_short, defence_in_short, threat_in_short


def rich_table(cards: Mapping[str, Card]) -> Table:
    """One row a run: what was attacked how, accuracies with 95 % intervals, cost and status.

    Args:
        cards: the runs' cards by name.
    """
    status, notes = status_cells(cards)
    rules = main_rules(list(cards.values()))
    caption = [*notes, "Measured here: accuracy in % [95 % interval]; calls and seconds an image."]
    if any(not card["verdicts"][rule]["aimed_at"] for card in cards.values() for rule in rules):
        caption.append(f"{TRANSFERRED} transferred: the attack aimed at another rule.")
    table = Table(
        title="Robustness",
        caption=Text("\n".join(caption)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("Run: defence / threat, attack", ratio=1)
    table.add_column("n", justify="right", no_wrap=True)
    for rule in rules:
        aimed = all(aimed_rule(card) == rule for card in cards.values())
        for kind in ("clean", "robust"):
            heading = Text(f"{kind}\n{rule}", style="bold" if aimed else "")
            table.add_column(heading, justify="right", no_wrap=True)
    for label in ("calls", "seconds"):
        table.add_column(label, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for (name, card), word in zip(cards.items(), status, strict=True):
        cells = []
        for rule in rules:
            cells += [Text(percent(card["verdicts"][rule]["clean"])), Text(robust_cell(card, rule))]
        mark = Text(word, style="green" if word == "ok" else "bold red")
        table.add_row(_description(name, card), str(card["n"]), *cells, *cost_cells(card), mark)
    return table


def _description(name: str, card: Card) -> Text:
    attack = card["attack"]
    return Text.assemble(
        (name, "bold"),
        (f"\ndefence: {defence_in_short(card['defence'])}", "dim"),
        (f"\n{threat_in_short(attack['threat'])}, {attack_in_short(attack)}", "dim"),
    )
