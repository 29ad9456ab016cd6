"""How alike two sets of directions are: nearest rows by cosine, mutual nearest rows, antipodes.

L, M directions of two sets, C directions of a chunk, D site width. Throughout, `signed` says that directions are lines,
matched by |cosine|; rays are matched by the cosine itself. Rows need not have unit length.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 2**24  # cosines held at one time


def nearest(A_LD: Tensor, B_MD: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """(partner_L, cosine_L): for each row of A the row of B at the greatest cosine, and that cosine; on the CPU."""
    chunks = [cosines_CM.max(1) for cosines_CM in _cosines(A_LD, B_MD, signed)]
    return torch.cat([chunk.indices for chunk in chunks]).cpu(), torch.cat([chunk.values for chunk in chunks]).cpu()


def mutual_nearest(A_LD: Tensor, B_MD: Tensor, signed: bool = False) -> tuple[Tensor, Tensor]:
    """(partner_L, cosine_L): `nearest`, if the partner's nearest row of A is this one; otherwise -1, -1."""
    partner_L, cosine_L = nearest(A_LD, B_MD, signed)
    back_M, _ = nearest(B_MD, A_LD, signed)
    mutual_L = back_M[partner_L] == torch.arange(len(A_LD))
    return torch.where(mutual_L, partner_L, -1), torch.where(mutual_L, cosine_L, -1.0)


def antipodal_share(W_LD: Tensor, below: float = -0.9) -> float:
    """Fraction of the rows that have a partner at a cosine below `below`."""
    return torch.cat([c_CL.amin(1) < below for c_CL in _cosines(W_LD, W_LD, False)]).double().mean().item()


def _cosines(A_LD: Tensor, B_MD: Tensor, signed: bool) -> Iterator[Tensor]:
    """Cosines of some rows of A with all rows of B, at most CHUNK at a time."""
    if A_LD.ndim != 2 or B_MD.ndim != 2 or A_LD.shape[1] != B_MD.shape[1] or not len(A_LD) or not len(B_MD):
        raise ValueError(
            f"directions of shapes {tuple(A_LD.shape)} and {tuple(B_MD.shape)}; both must be (some, the same width)"
        )
    A_LD, B_MD = F.normalize(A_LD.detach(), eps=1e-30), F.normalize(B_MD.detach(), eps=1e-30)
    for A_CD in A_LD.split(max(1, CHUNK // len(B_MD))):
        cosines_CM = A_CD @ B_MD.T
        yield cosines_CM.abs_() if signed else cosines_CM
