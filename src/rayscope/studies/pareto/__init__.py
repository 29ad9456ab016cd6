"""What does a bit buy?"""

from rayscope.studies.pareto.study import pareto

__all__ = ["pareto"]
