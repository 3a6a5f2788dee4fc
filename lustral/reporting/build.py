"""From run folders to a report: as text, or as a folder of texts and figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lustral.evaluation.detection import KIND as DETECTION
from lustral.reporting.beside import beside, published_beside
from lustral.reporting.corruptions import corruption_rows, corruption_tables
from lustral.reporting.curves import sweep_curve
from lustral.reporting.data import csv_text, json_text, robustness_rows
from lustral.reporting.detection import detection_rows, detection_tables, figures_of_runs
from lustral.reporting.figures import accuracy_bars, budget_curve, draws_histogram
from lustral.reporting.frontier import frontier, frontiers
from lustral.reporting.heatmap import corruption_figures
from lustral.reporting.latex import latex, latex_figures
from lustral.reporting.levels import level_histogram, levels_of, score_curve
from lustral.reporting.markdown import markdown, markdown_figures
from lustral.reporting.quality import quality_figures, quality_rows, quality_tables
from lustral.reporting.runs import CORRUPTIONS, QUALITY, ROBUSTNESS, Run, load_runs, of_kind
from lustral.reporting.style import save
from lustral.reporting.sweeps import find_sweeps
from lustral.reporting.tables import Table, all_tables

FORMATS = ("markdown", "latex", "csv", "json")


def report(run_dirs: Sequence[str | Path], format: str = "markdown") -> str:
    """The report of the runs in ``run_dirs``.

    Args:
        run_dirs: folders with a ``card.json``, or with several of them below. The others are compared with
            the first.
        format: "markdown", "latex", "csv" or "json".

    Raises:
        FileNotFoundError: if a folder or its card is missing.
        ValueError: if a card cannot be read, or the format is another.
    """
    if format not in FORMATS:
        raise ValueError(f"--format is {format!r}; it may be {', '.join(FORMATS)}.")
    return _text(load_runs(run_dirs), format)


def write_report(run_dirs: Sequence[str | Path], folder: str | Path) -> list[Path]:
    """Write the report in every format, and its figures as PNG and PDF, to ``folder``; return the files.

    Raises:
        FileNotFoundError: if a run folder or its card is missing.
        ValueError: if a card cannot be read.
        OSError: if ``folder`` cannot be written.
    """
    runs, folder = load_runs(run_dirs), Path(folder).expanduser()
    figures = all_figures(runs)
    captions = [(stem, caption) for stem, (_, caption) in figures.items()]
    texts = {
        "report.md": _text(runs, "markdown") + markdown_figures(captions),
        "report.tex": _text(runs, "latex") + latex_figures(captions),
        "report.csv": _text(runs, "csv"),
        "report.json": _text(runs, "json"),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
            written.append(folder / name)
        for stem, (figure, _) in figures.items():
            written += save(figure, folder, stem)
    except OSError as error:
        raise OSError(
            f"The report cannot be written to {folder} ({error.strerror}): free or unlock it, or choose "
            "another folder with --output."
        ) from error
    return written


@dataclass(frozen=True)
class Kind:
    """How runs of one kind of evaluation are reported.

    Attributes:
        tables: what is said of them.
        figures: figures with captions by file stem.
        rows: a dict for each row of the CSV file.
    """

    tables: Callable[[Sequence[Run]], list[Table]]
    figures: Callable[[Sequence[Run]], dict[str, tuple[Figure, str]]]
    rows: Callable[[Sequence[Run]], list[dict[str, Any]]]


def _text(runs: Sequence[Run], format: str) -> str:
    kinds = [(kind, own) for name, kind in KINDS.items() if (own := of_kind(runs, name))]
    if format == "csv":
        return csv_text([row for kind, own in kinds for row in kind.rows(own)])
    if format == "json":
        return json_text(runs)
    tables = [table for kind, own in kinds for table in kind.tables(own)]
    return (latex if format == "latex" else markdown)(tables)


def all_figures(runs: Sequence[Run]) -> dict[str, tuple[Figure, str]]:
    """Figures with captions by file stem; those that need records are left out for runs without."""
    figures: dict[str, tuple[Figure, str]] = {}
    for name, kind in KINDS.items():
        if own := of_kind(runs, name):
            figures |= kind.figures(own)
    return figures


def _robustness_tables(runs: Sequence[Run]) -> list[Table]:
    published = beside(published_beside(runs))
    return [*all_tables(runs), *([published] if published.rows else [])]


def _robustness_figures(runs: Sequence[Run]) -> dict[str, tuple[Figure, str]]:
    figures = {
        "accuracy": (
            accuracy_bars({run.name: run.card for run in runs}),
            "Accuracy on clean and on adversarial images under the rule that the attack aimed at, with 95 % "
            "intervals; hatched: suspect.",
        )
    }
    audits = {run.name: rates for run in runs if (rates := run.audit_rates())}
    if audits:
        images = {run.name: run.card["audit"]["num_images"] for run in runs}
        figures["audit"] = (
            budget_curve(audits, images),
            "What is left of the accuracy under the audit's attacks (`expected`, 95 % intervals); dotted: "
            "under the run's own attack on the same images.",
        )
    for draws in sorted({run.num_draws for run in runs if run.records}):
        shares = {run.name: run.verdicts("expected") for run in runs if run.records and run.num_draws == draws}
        figures[f"draws_{draws}"] = (
            draws_histogram(shares, draws),
            f"How many of each image's {draws} verdict draws are right. A deterministic defence has images "
            f"at 0 and {draws} only.",
        )
    return figures | _level_figures(runs) | _many_runs(runs)


def _level_figures(runs: Sequence[Run]) -> dict[str, tuple[Figure, str]]:
    """What levels and scores say of purifiers that choose a noise level for every image."""
    found = {run.name: levels for run in runs if (levels := levels_of(run))}
    if not found:
        return {}
    caption = "The noise levels that images get in the first round, the means over their verdict draws; dashed: t*."
    return {"level_histogram": (level_histogram(found), caption)}


def _many_runs(runs: Sequence[Run]) -> dict[str, tuple[Figure, str]]:
    """What only several runs show: curves over what they differ in, and the frontier."""
    figures: dict[str, tuple[Figure, str]] = {}

    def add(stem: str, figure: Figure, caption: str) -> None:
        number = 1 + sum(known == stem or known.startswith(f"{stem}-") for known in figures)
        figures[stem if number == 1 else f"{stem}-{number}"] = (figure, caption)

    undefended = {run.task: run for run in runs if not run.defended}
    for sweep in find_sweeps(runs):
        names = ", ".join(run.name for run in sweep.runs)
        add(
            f"sweep_{sweep.name}",
            sweep_curve(sweep, undefended),
            f"Accuracy against {sweep.name} with 95 % intervals, in runs that differ in nothing else ({names}); "
            "hollow: suspect.",
        )
        if sweep.name == "eps" and all(run.statistic("score_clean") for run in sweep.runs):
            add(
                "scores",
                score_curve(sweep),
                "Norms of the perturbation score against the budget of the attack: means with 95 % intervals; the "
                f"bands hold the middle 80 % of the images ({names}).",
            )
    for group in frontiers(runs):
        add(
            "frontier",
            frontier(group),
            "Robust over clean accuracy with 95 % intervals; the lines join runs with one noise level for all images, "
            "written beside each; hollow: suspect.",
        )
    return figures


KINDS = {
    ROBUSTNESS: Kind(_robustness_tables, _robustness_figures, robustness_rows),
    CORRUPTIONS: Kind(corruption_tables, corruption_figures, corruption_rows),
    QUALITY: Kind(quality_tables, quality_figures, quality_rows),
    DETECTION: Kind(detection_tables, figures_of_runs, detection_rows),
}
"""By the kind of evaluation, in the order in which a report has them."""
