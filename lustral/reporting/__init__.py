"""Reporting: tables and figures from the cards of finished runs."""

from lustral.reporting.attention import attention_panel, heat, overlay
from lustral.reporting.build import FORMATS, report, write_report
from lustral.reporting.figures import accuracy_bars, budget_curve, draws_histogram
from lustral.reporting.levels import level_histogram, levels_of
from lustral.reporting.panels import Caption, panel_figure
from lustral.reporting.runs import Run, load_runs, read_card
from lustral.reporting.terminal import rich_table

__all__ = [
    "FORMATS",
    "Caption",
    "Run",
    "accuracy_bars",
    "attention_panel",
    "budget_curve",
    "draws_histogram",
    "heat",
    "level_histogram",
    "levels_of",
    "load_runs",
    "overlay",
    "panel_figure",
    "read_card",
    "report",
    "rich_table",
    "write_report",
]
