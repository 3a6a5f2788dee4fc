"""An evaluation of detectors: what is printed, its figures, and its numbers for TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lustral.evaluation import Rate
from lustral.evaluation.detection import KIND
from lustral.reporting.runs import Run
from lustral.reporting.style import INK, PALETTE, WIDTH, points, style
from lustral.reporting.tables import Column, Table

Card = Mapping[str, Any]


def detection_numbers(card: Card) -> dict[str, float]:
    """The numbers of a card by name: AUROC by detector, view and budget; level and power by detector and n."""
    numbers = {"accuracy/clean": card["accuracy"]["clean"]["value"]}
    for name, found in card["detectors"].items():
        for budget, views in found["by_budget"].items():
            for view, entry in views.items():
                numbers[f"{name}/{view}_{budget}/auroc"] = entry["auroc"]["value"]
                numbers[f"{name}/{view}_{budget}/detected_at_5"] = entry["detected_at_5"]["value"]
    for name, n, entry in _group_entries(card):
        numbers[f"{name}/n_{n}/auroc"] = entry["statistic"]["adversarial"]["auroc"]["value"]
        for kind in ("level", "power", "random"):
            for test, rate in entry.get(kind, {}).items():
                numbers[f"{name}/n_{n}/{kind}_{test}"] = rate["value"]
    return numbers


def show_detection(folder: Path, card: Card, figures: Sequence[str]) -> None:
    """Print a card."""
    eps, attack = card["attack"]["threat"]["eps"], card["attack"]["class"]
    print(f"{card['status']}, n = {card['n']}; {attack}, {card['attack']['threat']['norm']} {eps}")
    print(f"classifier: clean {_rate(card['accuracy']['clean'])}")
    for name, found in card["detectors"].items():
        for budget, views in found["by_budget"].items():
            told = "; ".join(
                f"{view} AUROC {_rate(entry['auroc'])}, detected at 5 % {_rate(entry['detected_at_5'])}"
                for view, entry in views.items()
            )
            print(f"{name}, eps {budget}: {told}")
        print(f"{name}: AUROC below .95 under eps {found['eps_below_95']}")
    for name, n, entry in _group_entries(card):
        parts = [f"AUROC {_rate(entry['statistic']['adversarial']['auroc'])}"]
        for kind in ("level", "power", "random"):
            parts += [f"{kind} by {test} {_rate(rate)}" for test, rate in entry.get(kind, {}).items()]
        if "mixed" in entry:
            parts.append("by adversarial images " + ", ".join(f"{k}: {_rate(r)}" for k, r in entry["mixed"].items()))
        print(f"{name}, groups of {n}: {'; '.join(parts)}")
    print(f"{folder / 'card.json'}; {', '.join(figures)}")


def detection_tables(runs: Sequence[Run]) -> list[Table]:
    """Detectors of single images by budget, and detectors of groups by group size."""
    single, groups = list[list[str]](), list[list[str]]()
    for run in runs:
        for name, found in run.card["detectors"].items():
            for budget, views in found["by_budget"].items():
                cells = [_rate(views[v][k]) for v in ("adversarial", "random") for k in ("auroc", "detected_at_5")]
                single.append([run.name, name, budget, *cells])
        for name, n, entry in _group_entries(run.card):
            cells = [_rate(entry["statistic"]["adversarial"]["auroc"])]
            cells += [_rate(entry[k]["permutation"]) if k in entry else "" for k in ("level", "power", "random")]
            groups.append([run.name, name, n, *cells])
    noted = ["Rates and areas with 95 % intervals. Random: random noise of the same norm, a control."]
    heads = [Column("run"), Column("detector"), Column("eps")]
    areas = [Column(label, group) for group in ("adversarial", "random") for label in ("AUROC", "detected at 5 %")]
    sizes = [Column("run"), Column("detector"), Column("n"), Column("AUROC against the reference")]
    tests = [Column(label, "permutation test at 5 %") for label in ("level", "power", "random")]
    tables = [Table("detection", "Detection of single images", [*heads, *areas], single, noted)] if single else []
    if groups:
        tables.append(Table("group_detection", "Detection of groups", [*sizes, *tests], groups, noted))
    return tables


def detection_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A dict for each run, detector and number."""
    return [
        {"run": run.name, "kind": KIND, "number": name, "value": value}
        for run in runs
        for name, value in detection_numbers(run.card).items()
    ]


def figures_of_runs(runs: Sequence[Run]) -> dict[str, tuple[Figure, str]]:
    """The figures of every run, with captions, by file stem."""
    captions = {
        "detection": "AUROC of detectors over the budget, under attack and with random noise of the same norm",
        "power": "Rejections at 5 % over group sizes and over the share of adversarial images",
    }
    return {
        f"{stem}_{run.name.replace('/', '_')}": (figure, f"{captions[stem]} ({run.name}).")
        for run in runs
        for stem, figure in detection_figures(run.card).items()
    }


def detection_figures(card: Card) -> dict[str, Figure]:
    """``detection``: AUROC of the detectors of single images over budgets; ``power``: rejections over group sizes, and
    over the share of adversarial images; of what the card has."""
    figures = {}
    if card["detectors"] and len(card["budgets"]) > 1:
        figures["detection"] = _over_budgets(card)
    if any("power" in entry for _, _, entry in _group_entries(card)):
        figures["power"] = _power(card)
    return figures


def _over_budgets(card: Card) -> Figure:
    with style():
        figure = Figure(figsize=(0.66 * WIDTH, 2.8), layout="constrained")
        axes = figure.add_subplot()
        for colour, (name, found) in zip(_colours(len(card["detectors"])), card["detectors"].items(), strict=True):
            budgets = [float(budget) for budget in found["by_budget"]]
            for view, marker in (("adversarial", "o"), ("random", "^")):
                areas = [_as_rate(views[view]["auroc"]) for views in found["by_budget"].values()]
                points(axes, budgets, areas, colour, f"{name}, {view}", marker)
        axes.axhline(0.95, color=INK, linestyle=":", linewidth=0.8)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel(f"eps ({card['attack']['threat']['norm']})")
        axes.set_ylabel("AUROC")
        axes.grid(axis="y")
        axes.set_title(f"{card['attack']['class']}, and random noise of the same norm, n = {card['n']}")
        axes.legend(fontsize=6)
    return figure


def _power(card: Card) -> Figure:
    found = dict(card["groups"]["by_detector"])
    with style():
        figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        for colour, (name, entries) in zip(_colours(len(found)), found.items(), strict=True):
            own = {int(n): entry for n, entry in entries.items() if "power" in entry}
            for kind, marker in (("power", "o"), ("random", "^"), ("level", "s")):
                rates = [_as_rate(entry[kind]["permutation"]) for entry in own.values()]
                points(left, list(own), rates, colour, f"{name}, {kind}", marker)
            for n, entry in own.items():
                right.plot(
                    [int(k) / n for k in entry["mixed"]],
                    [rate["value"] for rate in entry["mixed"].values()],
                    color=colour,
                    alpha=0.3 + 0.7 * n / max(own),
                    linewidth=0.9,
                    label=f"{name}, n = {n}",
                )
        left.set_xlabel("images in a group")
        right.set_xlabel("share of adversarial images")
        left.set_ylabel("rejected at 5 %")
        for axes in (left, right):
            axes.set_ylim(-0.02, 1.02)
            axes.grid(axis="y")
            axes.legend(fontsize=5)
    return figure


def _group_entries(card: Card) -> list[tuple[str, str, Mapping[str, Any]]]:
    by_detector = card["groups"].get("by_detector", {})
    return [(name, n, entry) for name, entries in by_detector.items() for n, entry in entries.items()]


def _colours(count: int) -> list[str]:
    return [PALETTE[i % len(PALETTE)] for i in range(count)]


def _as_rate(entry: Mapping[str, float]) -> Rate:
    return Rate(entry["value"], entry["low"], entry["high"])


def _rate(entry: Mapping[str, float]) -> str:
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"
