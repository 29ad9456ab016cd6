"""How alike two sets of directions are: greatest cosines, one-to-one matches, antipodes.

L, M directions of two sets, C directions of a chunk, D site width. Throughout, `signed` says that directions are lines,
matched by |cosine|; rays are matched by the cosine itself. Rows need not be unit.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

CHUNK = 2**24  # cosines held at one time


def greatest_cosines(A_LD: Tensor, B_MD: Tensor, signed: bool) -> Tensor:
    """[L]: for each row of A its greatest cosine with a row of B."""
    return torch.cat([cosines_CM.amax(1) for cosines_CM in _cosines(A_LD, B_MD, signed)])


def mmcs(A_LD: Tensor, B_MD: Tensor, signed: bool = False) -> float:
    """Mean over the rows of A of their greatest cosine with a row of B; with a planted truth as A, a mean over the truth.

    Not symmetric: rows of B may serve several rows of A.
    """
    return greatest_cosines(A_LD, B_MD, signed).double().mean().item()


def mcc(A_LD: Tensor, B_MD: Tensor, signed: bool = False) -> float:
    """Mean cosine of the one-to-one match with the greatest sum (Hungarian), over the min(L, M) pairs that it makes.

    The match needs all L x M cosines at once, in float64 inside scipy, and time of order L^2 M.
    """
    cosines_LM = torch.cat(list(_cosines(A_LD, B_MD, signed))).cpu()
    rows, columns = linear_sum_assignment(cosines_LM.numpy(), maximize=True)
    return cosines_LM[rows, columns].double().mean().item()


def pw_mcc(sets: Sequence[Tensor], signed: bool = False) -> float:
    """Mean of mcc over all pairs of sets: agreement of seeds (2505.20254)."""
    if len(sets) < 2:
        raise ValueError(f"pw_mcc of {len(sets)} sets of directions; it needs at least two")
    found = [mcc(A_LD, B_LD, signed) for A_LD, B_LD in combinations(sets, 2)]
    return sum(found) / len(found)


def antipodal_share(W_LD: Tensor, below: float = -0.9) -> float:
    """Share of the rows that have a partner at a cosine below `below`."""
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
