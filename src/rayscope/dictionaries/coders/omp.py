"""Orthogonal matching pursuit, batched: k directions of each vector, one at a time, their codes always least squares.

N vectors, C vectors of a chunk, D site width, L directions.
"""

import torch
from torch import Tensor

from rayscope.dictionaries.coders.support import in_chunks, nonnegative


@torch.no_grad()
def omp(x_ND: Tensor, W_LD: Tensor, k: int, signed: bool = True) -> tuple[Tensor, Tensor]:
    """(indices, values), both (N, k): repeat k times: take the row with the largest |r . w|, r = x - its projection.

    Without sign (rays): the row with the largest r . w, while one is positive, and r = x - its projection on the cone
    of the rows taken: codes are non-negative least squares (Bruckstein, Elad and Zibulevsky 2008); some may become 0.

    Rows of W have unit length. Once a residual is 0 the remaining values are 0. Memory does not grow with
    L^2: no Gram matrix is formed; each step is one matmul of the chunk's residuals with W.
    """
    chunk = _chunk if signed else _rays
    return in_chunks(lambda x_CD: chunk(x_CD, W_LD, k), x_ND, k)


def _chunk(x_CD: Tensor, W_LD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """By an orthonormal basis Q of the rows taken: w_j = sum_i R_ij q_i, so the codes solve R z = Q x."""
    C, D = x_CD.shape
    Q_CkD, R_Ckk = x_CD.new_zeros(C, k, D), x_CD.new_zeros(C, k, k)
    indices_Ck = torch.zeros(C, k, dtype=torch.int64, device=x_CD.device)
    residual_CD = x_CD.clone()
    # what is left of a vector or of a row below this fraction of it is rounding
    zero = 100 * torch.finfo(x_CD.dtype).eps
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
        useful_C = (length_C > zero) & (residual_CD.norm(dim=1) > zero * norm_C)
        R_Ckk[:, j, j] = torch.where(useful_C, length_C, 1)
        Q_CkD[:, j] = torch.where(useful_C[:, None], q_CD / length_C.clamp_min(zero)[:, None], 0)
        residual_CD -= (residual_CD * Q_CkD[:, j]).sum(1, keepdim=True) * Q_CkD[:, j]
    target_Ck = torch.einsum("ckd,cd->ck", Q_CkD, x_CD)
    values_Ck = torch.linalg.solve_triangular(R_Ckk, target_Ck[:, :, None], upper=True)[:, :, 0]
    return indices_Ck, values_Ck


def _rays(x_CD: Tensor, W_LD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    C, D = x_CD.shape
    indices_Ck = torch.zeros(C, k, dtype=torch.int64, device=x_CD.device)
    rows_CkD = x_CD.new_zeros(C, k, D)
    gram_Ckk = torch.zeros(C, k, k, dtype=torch.float64, device=x_CD.device)
    target_Ck, z_Ck = gram_Ckk.new_zeros(C, k), gram_Ckk.new_zeros(C, k)
    residual_CD = x_CD.clone()
    zero_C = 100 * torch.finfo(x_CD.dtype).eps * x_CD.norm(dim=1)
    for j in range(k):
        gain_CL = residual_CD @ W_LD.T
        gain_CL.scatter_(1, indices_Ck[:, :j], -torch.inf)
        best_C, indices_Ck[:, j] = gain_CL.max(1)
        rows_CkD[:, j] = W_LD[indices_Ck[:, j]] * (best_C > zero_C)[:, None]  # a row of zeros never has a code
        across_Cj = (rows_CkD[:, : j + 1] @ rows_CkD[:, j, :, None])[:, :, 0].double()
        gram_Ckk[:, j, : j + 1] = gram_Ckk[:, : j + 1, j] = across_Cj
        target_Ck[:, j] = (rows_CkD[:, j] * x_CD).sum(1)
        part = slice(j + 1)
        z_Ck[:, part] = nonnegative(gram_Ckk[:, part, part], target_Ck[:, part], z_Ck[:, part])
        residual_CD = x_CD - (z_Ck[:, None, part].to(x_CD.dtype) @ rows_CkD[:, part])[:, 0]
    return indices_Ck, z_Ck.to(x_CD.dtype)
