"""The papers' tables: what each row evaluates, and what was published of it."""

from lustral.tables.choice import GROUPS, SET_BY_JOBS, Choice
from lustral.tables.fits import fits, same_draws
from lustral.tables.jobs import HAVE_A_CARD, Job, call, make_jobs, missing
from lustral.tables.table import EVIDENCE, Other, PaperTable, Published, Row, read_table, read_tables

__all__ = [
    "EVIDENCE",
    "GROUPS",
    "HAVE_A_CARD",
    "SET_BY_JOBS",
    "Choice",
    "Job",
    "Other",
    "PaperTable",
    "Published",
    "Row",
    "call",
    "fits",
    "make_jobs",
    "missing",
    "read_table",
    "read_tables",
    "same_draws",
]
