"""Least squares on a given support: the codes of the chosen directions of each vector, signed or non-negative.

C vectors of a chunk, D site width, L directions, k directions chosen.
"""

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK = 1024  # vectors of a coder at a time, at most
ELEMENTS = 2**23, 2**27  # that it holds, on a CPU and on a GPU
BLOCK = 64  # columns that are searched together
RIDGE = 1e-10  # of unit rows' Gram matrix in float64: equal rows share a code instead of failing


def in_chunks(
    find: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], x_ND: Tensor, k: int | Tensor, held: int
) -> tuple[Tensor, Tensor]:
    """(indices, values), both (N, k), of a coder that takes a chunk of vectors and each one's k, which fall.

    k: of all vectors, or (N) of each. held: elements per vector that the coder holds, apart from those of its k rows.
    """
    N, D = x_ND.shape
    k_N = k.cpu() if isinstance(k, Tensor) else torch.full((N,), k)
    most = int(k_N.max()) if N else 0 if isinstance(k, Tensor) else k
    indices_Nk = torch.zeros(N, most, dtype=torch.int64, device=x_ND.device)
    values_Nk = x_ND.new_zeros(N, most)
    order_N, start = k_N.argsort(descending=True, stable=True), 0
    while start < N and (most := int(k_N[order_N[start]])):
        size = max(1, min(CHUNK, ELEMENTS[x_ND.device.type != "cpu"] // (held + most * (most + D))))
        at_C = order_N[start : start + size]
        there_C = at_C.to(x_ND.device)
        indices_Nk[there_C, :most], values_Nk[there_C, :most] = find(x_ND[there_C], k_N[at_C])
        start += size
    return indices_Nk, values_Nk


def largest(values_CL: Tensor) -> tuple[Tensor, Tensor]:
    """(values, indices) of each row's largest, as max(1): by blocks, which vector instructions search."""
    C, L = values_CL.shape
    if L % BLOCK or values_CL.device.type != "cpu":
        return values_CL.max(1)
    most_CB = values_CL.view(C, L // BLOCK, BLOCK).amax(2)
    block_C1 = most_CB.argmax(1, keepdim=True)
    inside_CB = block_C1 * BLOCK + torch.arange(BLOCK)
    indices_C1 = inside_CB.gather(1, values_CL.gather(1, inside_CB).argmax(1, keepdim=True))
    return most_CB.gather(1, block_C1)[:, 0], indices_C1[:, 0]


def within(k_C: Tensor, like_Ck: Tensor) -> Tensor:
    """(C, k): which places are among each vector's own k."""
    return torch.arange(like_Ck.shape[1], device=like_Ck.device) < k_C.to(like_Ck.device)[:, None]


def least_squares(x_CD: Tensor, W_LD: Tensor, indices_Ck: Tensor, signed: bool, used_Ck: Tensor) -> Tensor:
    """values_Ck = argmin |x - sum_j z_j w_j|^2 over z, or over z >= 0 if codes have no sign; 0 if not used."""
    rows_CkD = W_LD[indices_Ck] * used_Ck[:, :, None]
    gram_Ckk = (rows_CkD @ rows_CkD.mT).double()
    target_Ck = (rows_CkD @ x_CD[:, :, None])[:, :, 0].double()
    values_Ck = solve(gram_Ckk, target_Ck) if signed else nonnegative(gram_Ckk, target_Ck)
    return values_Ck.to(x_CD.dtype)


def solve(gram_Ckk: Tensor, target_Ck: Tensor) -> Tensor:
    """G z = b, with RIDGE on the diagonal."""
    eye_kk = torch.eye(gram_Ckk.shape[-1], dtype=gram_Ckk.dtype, device=gram_Ckk.device)
    return torch.linalg.solve_ex(gram_Ckk + RIDGE * eye_kk, target_Ck[:, :, None]).result[:, :, 0]


def nonnegative(gram_Ckk: Tensor, target_Ck: Tensor, start_Ck: Tensor | None = None) -> Tensor:
    """argmin z G z / 2 - b z over z >= 0: Lawson and Hanson's active set (1974), all vectors of a batch at once.

    Until no gradient b - G z outside the free set exceeds rounding (at most 3 k times): free the greatest, solve on the
    free set, and where a code would turn negative stop at the border and fix it there. start: a solution of a part.
    """
    k = target_Ck.shape[1]
    z_Ck = torch.zeros_like(target_Ck) if start_Ck is None else start_Ck.clone()
    free_Ck = z_Ck > 0
    nil_C1 = 1e-9 * target_Ck.abs().amax(1, keepdim=True)
    for _ in range(3 * k):
        slope_Ck = (target_Ck - (gram_Ckk @ z_Ck[:, :, None])[:, :, 0]).masked_fill(free_Ck, -torch.inf)
        best_C1 = slope_Ck.argmax(1, keepdim=True)
        open_C = (slope_Ck.gather(1, best_C1) > nil_C1)[:, 0]
        if not open_C.any():
            break
        z_Ok, free_Ok = z_Ck[open_C], free_Ck[open_C].scatter(1, best_C1[open_C], True)
        z_Ck[open_C], free_Ck[open_C] = _to_the_border(gram_Ckk[open_C], target_Ck[open_C], z_Ok, free_Ok)
    return z_Ck


def _to_the_border(gram_Ckk: Tensor, target_Ck: Tensor, z_Ck: Tensor, free_Ck: Tensor) -> tuple[Tensor, Tensor]:
    """(z, free): least squares on the free set, less what has to be fixed at 0."""
    for _ in range(z_Ck.shape[1] + 1):
        both_Ckk = free_Ck[:, :, None] & free_Ck[:, None, :]
        inner_Ckk = gram_Ckk * both_Ckk + torch.diag_embed((~free_Ck).to(gram_Ckk))
        aim_Ck = solve(inner_Ckk, target_Ck * free_Ck) * free_Ck
        over_Ck = free_Ck & (aim_Ck <= 0)
        if not over_Ck.any():
            return aim_Ck, free_Ck
        share_Ck = torch.where(over_Ck, z_Ck / (z_Ck - aim_Ck).clamp_min(torch.finfo(z_Ck.dtype).tiny), torch.inf)
        share_C1 = share_Ck.amin(1, keepdim=True)
        stop_Ck = over_Ck & (share_Ck <= share_C1)
        z_Ck = torch.where(stop_Ck, 0, z_Ck + share_C1.clamp_max(1) * (aim_Ck - z_Ck))
        free_Ck = free_Ck & ~stop_Ck
    return z_Ck.clamp_min(0) * free_Ck, free_Ck
