"""Measure sparse autoencoders on held-out text."""

from microscope.evaluation.compare import Comparison, compare, difference_table, summarise_comparison
from microscope.evaluation.report import html_report, write_reports
from microscope.evaluation.run import FORMULAS, Evaluation, Goal, evaluate, summarise

__all__ = [
    "FORMULAS",
    "Comparison",
    "Evaluation",
    "Goal",
    "compare",
    "difference_table",
    "evaluate",
    "html_report",
    "summarise",
    "summarise_comparison",
    "write_reports",
]
