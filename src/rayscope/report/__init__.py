"""What a run found: the page (build), and what a terminal shows (print_summary, print_features, verdict_lines)."""

from rayscope.report.coders import print_coders
from rayscope.report.elsewhere import print_elsewhere
from rayscope.report.features import print_features
from rayscope.report.html import build
from rayscope.report.inputs import read_file
from rayscope.report.studies import read_verdict, verdict_lines
from rayscope.report.summary import print_summary, summary_table
from rayscope.report.verdicts import verdicts

__all__ = [
    "build",
    "print_coders",
    "print_elsewhere",
    "print_features",
    "print_summary",
    "read_file",
    "read_verdict",
    "summary_table",
    "verdict_lines",
    "verdicts",
]
