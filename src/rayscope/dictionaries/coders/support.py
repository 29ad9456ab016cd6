"""Least squares on a given support: the codes of the chosen directions of each vector, signed or non-negative.

C vectors of a chunk, D site width, L directions, k directions chosen.
"""

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK = 1024
RIDGE = 1e-10  # of unit rows' Gram matrix in float64: equal rows share a code instead of failing


def in_chunks(
    find: Callable[[Tensor], tuple[Tensor, Tensor]], x_ND: Tensor, k: int, size: int = 0
) -> tuple[Tensor, Tensor]:
    """(indices, values), both (N, k), of a coder that works on `size` vectors at a time."""
    parts = [find(x_ND[start : start + (size or CHUNK)]) for start in range(0, len(x_ND), size or CHUNK)]
    if not parts:
        return torch.zeros(0, k, dtype=torch.int64, device=x_ND.device), x_ND.new_zeros(0, k)
    return torch.cat([indices for indices, _ in parts]), torch.cat([values for _, values in parts])


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
