"""Which directions do two halves of the text, or two seeds, both find?"""

from rayscope.studies.reproducible_directions.study import reproducible_directions

__all__ = ["reproducible_directions"]
