"""One file per question of the science; each gives a table, a figure, and what it observed of its predictions."""

from rayscope.studies.intervals import Observed, over_seeds
from rayscope.studies.setting import Findings, Setting
from rayscope.studies.study import Prediction, conduct

__all__ = ["Findings", "Observed", "Prediction", "Setting", "conduct", "over_seeds"]
