"""Orthogonal matching pursuit, batched: k directions of each vector, one at a time, their codes always least squares.

N vectors, C vectors of a chunk, D site width, L directions.
"""

import torch
from torch import Tensor

CHUNK = 1024


@torch.no_grad()
def omp(x_ND: Tensor, W_LD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(indices, values), both (N, k): repeat k times: take the row with the largest |r . w|, r = x - its projection.

    Rows of W have unit length. Where a residual is already nil the remaining values are 0. Memory does not grow with
    L^2: no Gram matrix is formed; each step is one matmul of the chunk's residuals with W.
    """
    parts = [_chunk(x_ND[start : start + CHUNK], W_LD, k) for start in range(0, len(x_ND), CHUNK)]
    if not parts:
        return torch.zeros(0, k, dtype=torch.int64, device=x_ND.device), x_ND.new_zeros(0, k)
    return torch.cat([indices for indices, _ in parts]), torch.cat([values for _, values in parts])


def _chunk(x_CD: Tensor, W_LD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """By an orthonormal basis Q of the rows taken: w_j = sum_i R_ij q_i, so the codes solve R z = Q x."""
    C, D = x_CD.shape
    Q_CkD, R_Ckk = x_CD.new_zeros(C, k, D), x_CD.new_zeros(C, k, k)
    indices_Ck = torch.zeros(C, k, dtype=torch.int64, device=x_CD.device)
    residual_CD = x_CD.clone()
    # what is left of a vector or of a row below this share of it is rounding
    nil = 100 * torch.finfo(x_CD.dtype).eps
    norm_C = x_CD.norm(dim=1)
    for j in range(k):
        gain_CL = (residual_CD @ W_LD.T).abs_()
        gain_CL.scatter_(1, indices_Ck[:, :j], -1.0)
        indices_Ck[:, j] = gain_CL.argmax(1)
        q_CD = W_LD[indices_Ck[:, j]]
        for _ in range(2):  # Gram-Schmidt, twice for accuracy
            along_Cj = torch.einsum("cjd,cd->cj", Q_CkD[:, :j], q_CD)
            q_CD = q_CD - torch.einsum("cj,cjd->cd", along_Cj, Q_CkD[:, :j])
            R_Ckk[:, :j, j] += along_Cj
        length_C = q_CD.norm(dim=1)
        useful_C = (length_C > nil) & (residual_CD.norm(dim=1) > nil * norm_C)
        R_Ckk[:, j, j] = torch.where(useful_C, length_C, 1)
        Q_CkD[:, j] = torch.where(useful_C[:, None], q_CD / length_C.clamp_min(nil)[:, None], 0)
        residual_CD -= (residual_CD * Q_CkD[:, j]).sum(1, keepdim=True) * Q_CkD[:, j]
    target_Ck = torch.einsum("ckd,cd->ck", Q_CkD, x_CD)
    values_Ck = torch.linalg.solve_triangular(R_Ckk, target_Ck[:, :, None], upper=True)[:, :, 0]
    return indices_Ck, values_Ck
