"""Are features rays, or directions with both signs in use?"""

from rayscope.studies.rays_vs_directions.study import rays_vs_directions

__all__ = ["rays_vs_directions"]
