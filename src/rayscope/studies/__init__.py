"""One file per question of the science; each gives a table, a figure, and what it observed of its predictions."""

from rayscope.studies.study import Findings, Observed, Prediction, Setting, conduct, over_seeds

__all__ = ["Findings", "Observed", "Prediction", "Setting", "conduct", "over_seeds"]
