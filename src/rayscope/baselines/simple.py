"""Directions that know nothing of the data: the neuron basis, and random rows.

D site width, L latents.
"""

import torch
from torch import Tensor

from rayscope.dictionaries import Linear


def neuron_basis(width: int, k: int, mean_D: Tensor) -> Linear:
    """The site's own coordinates: the k of each vector that are farthest from their mean."""
    return Linear(width, width, k, "topk", torch.eye(width), mean_D)


def random_rows(width: int, latents: int, k: int, seed: int, mean_D: Tensor) -> Linear:
    """Directions uniform on the sphere, coded by OMP: what k of L directions reach by number alone."""
    rows_LD = torch.randn(latents, width, generator=torch.Generator().manual_seed(seed))
    return Linear(width, latents, k, "omp", rows_LD, mean_D)
