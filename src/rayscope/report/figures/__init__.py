"""The report's figures: functions of the run's tables that return SVG text, or "" where there is nothing to draw.

Figures are made without pyplot and under matplotlib's own defaults; text becomes paths, labels are plain ASCII, and
dollar signs are no mathematics, so that no token can change a drawing. The same input gives the same bytes.
"""

from rayscope.report.figures.bits import bits_figure
from rayscope.report.figures.densities import density_figure
from rayscope.report.figures.style import styles
from rayscope.report.figures.tokens import appeared_figure, at_headline, token_figure
from rayscope.report.figures.training import training_figure

__all__ = [
    "appeared_figure",
    "at_headline",
    "bits_figure",
    "density_figure",
    "styles",
    "token_figure",
    "training_figure",
]
