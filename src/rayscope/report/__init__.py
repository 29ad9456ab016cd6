"""What a run found: the page (build) and the table that a terminal shows (print_summary)."""

from rayscope.report.html import build
from rayscope.report.summary import print_summary, summary_table
from rayscope.report.verdicts import verdicts

__all__ = ["build", "print_summary", "summary_table", "verdicts"]
