"""The lasso by FISTA, batched, and the k-sparse code made from it.

N vectors, C vectors of a chunk, D site width, L directions.
"""

import torch
from torch import Tensor

from rayscope.dictionaries.coders.support import in_chunks, least_squares, within

MATRICES = 8  # of size (C, L) that are held
SEARCHES, ITERATIONS, TOLERANCE = 8, 200, 1e-4  # penalties tried per vector; of each lasso


@torch.no_grad()
def fista(
    x_ND: Tensor,
    W_LD: Tensor,
    k: int | Tensor,
    signed: bool = True,
) -> tuple[Tensor, Tensor]:
    """(indices, values), both (N, k): the support from a lasso, the values by least squares on it (rays: over z >= 0).

    Each vector has a penalty of its own: of the SEARCHES tried by bisecting log penalty between .001 and 1 times
    the least that gives z = 0, the largest whose lasso has at least k codes (the least tried, if none has). The k
    largest of that lasso's codes are the support. Each lasso starts from the one before. k: of all vectors, or (N) of
    each; what is beyond it is 0.
    """
    curvature = _curvature(W_LD)

    def chunk(x_CD: Tensor, k_C: Tensor) -> tuple[Tensor, Tensor]:
        products_CL = x_CD @ W_LD.T
        most_C = (products_CL.abs() if signed else products_CL).amax(1).clamp_min(torch.finfo(x_CD.dtype).tiny)
        low_C, high_C = (most_C * 1e-3).log(), most_C.log()
        z_CL = found_CL = torch.zeros_like(products_CL)
        held_C = torch.zeros(len(x_CD), dtype=torch.bool, device=x_CD.device)
        for _ in range(SEARCHES):
            middle_C = (low_C + high_C) / 2
            z_CL = lasso(x_CD, W_LD, middle_C.exp(), signed, ITERATIONS, TOLERANCE, z_CL, curvature)
            enough_C = (z_CL != 0).sum(1) >= k_C.to(z_CL.device)
            # without enough codes so far every penalty tried was less than the one before: the last is the least
            found_CL = torch.where((enough_C | ~held_C)[:, None], z_CL, found_CL)
            held_C = held_C | enough_C
            low_C, high_C = torch.where(enough_C, middle_C, low_C), torch.where(enough_C, high_C, middle_C)
        size_Ck, indices_Ck = found_CL.abs().topk(int(k_C[0]))
        # absent codes must not enter the fit: their rows are 0, and so are their values
        values_Ck = least_squares(x_CD, W_LD, indices_Ck, signed, (size_Ck > 0) & within(k_C, size_Ck))
        return indices_Ck, values_Ck

    return in_chunks(chunk, x_ND, k, MATRICES * len(W_LD))


@torch.no_grad()
def lasso(
    x_CD: Tensor,
    W_LD: Tensor,
    penalty_C: Tensor,
    signed: bool,
    iterations: int,
    tolerance: float,
    start_CL: Tensor | None = None,
    curvature: float | None = None,
) -> Tensor:
    """argmin |x - z W|^2 / 2 + penalty |z|_1 (rays: over z >= 0), by FISTA with restarts.

        z' = shrink(u + (x - u W) W.T / c, penalty / c), u' = z' + (t - 1) / t' (z' - z), t' = (1 + sqrt(1 + 4 t^2)) / 2

    c the largest eigenvalue of W.T W. A vector's t returns to 1 if (u - z') . (z' - z) > 0. Stops where no vector's
    code moves by more than `tolerance` of its length, or after `iterations`. No L x L matrix is formed.
    Beck and Teboulle (2009); the restart is O'Donoghue and Candes's (2015).
    """
    c = _curvature(W_LD) if curvature is None else curvature
    z_CL = x_CD.new_zeros(len(x_CD), len(W_LD)) if start_CL is None else start_CL
    u_CL, t_C1 = z_CL, x_CD.new_ones(len(x_CD), 1)
    step_C1 = penalty_C[:, None] / c
    for _ in range(iterations):
        moved_CL = u_CL + (x_CD - u_CL @ W_LD) @ W_LD.T / c
        new_CL = (moved_CL.abs() - step_C1).relu_() * moved_CL.sign() if signed else (moved_CL - step_C1).relu_()
        change_CL = new_CL - z_CL
        restart_C1 = ((u_CL - new_CL) * change_CL).sum(1, keepdim=True) > 0
        t_C1 = torch.where(restart_C1, 1.0, t_C1)
        next_C1 = (1 + (1 + 4 * t_C1.square()).sqrt()) / 2
        u_CL = new_CL + torch.where(restart_C1, 0.0, (t_C1 - 1) / next_C1) * change_CL
        z_CL, t_C1 = new_CL, next_C1
        if (change_CL.norm(dim=1) <= tolerance * z_CL.norm(dim=1)).all():
            break
    return z_CL


def _curvature(W_LD: Tensor) -> float:
    """The largest eigenvalue of W.T W, and a little more."""
    return torch.linalg.eigvalsh((W_LD.T @ W_LD).double())[-1].item() * (1 + 1e-6)
