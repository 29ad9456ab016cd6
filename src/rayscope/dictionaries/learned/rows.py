"""Rows of unit length: how they are drawn, and the caps that soft-frozen ones stay in.

D site width, L latents.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rayscope.seeding import generator_of


def drawn_rows(latents: int, width: int, seed: int, name: str) -> Tensor:
    """(L, D) unit rows, uniform on the sphere, that depend on the seed and the name; fewer rows are the first ones."""
    return F.normalize(torch.randn(latents, width, generator=generator_of("initial rows", seed, name)))


def within_caps(w_LD: Tensor, centre_LD: Tensor, cosine: float) -> Tensor:
    """Unit rows w; one outside the cap around its unit centre c goes to the nearest point of the cap's edge.

    That is cosine * c + sine * (the unit vector of w's part orthogonal to c).
    """
    along_L1 = (w_LD * centre_LD).sum(1, keepdim=True)
    across_LD = F.normalize(w_LD - along_L1 * centre_LD)
    return torch.where(along_L1 >= cosine, w_LD, cosine * centre_LD + (1 - cosine**2) ** 0.5 * across_LD)


def check_caps(w_LD: Tensor, centre_LD: Tensor, cosine: float) -> None:
    """Raises ValueError if a unit row is outside the cap around its unit centre, by more than rounding."""
    outside_L = (w_LD * centre_LD).sum(1) < cosine - 1e-3
    if outside_L.any():
        raise ValueError(
            f"{int(outside_L.sum())} of {len(w_LD)} soft-frozen rows are not within cosine {cosine} of the rows that "
            "their seed and initial_rows draw: another version drew others; train the dictionary again"
        )
