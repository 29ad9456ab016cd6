"""Gradient pursuit, batched: k directions of each vector, one at a time, their codes by steps along the gradient.

N vectors, C vectors of a chunk, D site width, L directions.
"""

import torch
from torch import Tensor

from rayscope.dictionaries.coders.support import in_chunks, largest


@torch.no_grad()
def pursuit(x_ND: Tensor, W_LD: Tensor, k: int | Tensor, signed: bool = True, steps: int = 1) -> tuple[Tensor, Tensor]:
    """(indices, values), both (N, k): repeat k times: take the row with the largest |r . w| (rays: r . w > 0), r = x -
    z W; then, `steps` times, on the rows taken so far

        g = W r,   a = |g|^2 / |g W|^2,   z <- z + a g

    (rays: d = relu(z + a g) - z, z <- z + min(1, r . dW / |dW|^2) d, so that no step raises |r|).

    Blumensath and Davies, "Gradient pursuits" (2008). With many steps the codes are least squares on the support
    (rays: over z >= 0). No system is solved. Rows of W have unit length. k: of all vectors, or (N) of each; what is
    beyond it is 0.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    return in_chunks(lambda x_CD, k_C: _chunk(x_CD, k_C, W_LD, signed, steps), x_ND, k, len(W_LD))


def _chunk(x_CD: Tensor, k_C: Tensor, W_LD: Tensor, signed: bool, steps: int) -> tuple[Tensor, Tensor]:
    """k_C falls, so that the vectors that take another row are the first."""
    all_Ck = torch.zeros(len(x_CD), int(k_C[0]), dtype=torch.int64, device=x_CD.device)
    codes_Ck = x_CD.new_zeros(all_Ck.shape)
    some_Ck = torch.zeros_like(codes_Ck)  # 0 where nothing was left to take
    residual_CD, zero_C = x_CD.clone(), 100 * torch.finfo(x_CD.dtype).eps * x_CD.norm(dim=1)
    tiny = torch.finfo(x_CD.dtype).tiny
    for j in range(all_Ck.shape[1]):
        first = slice(int((k_C > j).sum()))
        x_CD, residual_CD, zero_C = x_CD[first], residual_CD[first], zero_C[first]
        indices_Ck, z_Ck, taken_Ck = all_Ck[first], codes_Ck[first], some_Ck[first]
        gain_CL = residual_CD @ W_LD.T
        gain_CL = gain_CL.abs_() if signed else gain_CL
        best_C, indices_Ck[:, j] = largest(gain_CL.scatter_(1, indices_Ck[:, :j], -torch.inf))
        taken_Ck[:, j] = (best_C > zero_C).to(z_Ck)
        rows_CjD, z_Cj = W_LD[indices_Ck[:, : j + 1]], z_Ck[:, : j + 1]
        for _ in range(steps):
            gradient_Cj = (rows_CjD @ residual_CD[:, :, None])[:, :, 0] * taken_Ck[:, : j + 1]
            if not signed:  # codes at 0 that would turn negative do not set the length of the step
                gradient_Cj = gradient_Cj.masked_fill((z_Cj <= 0) & (gradient_Cj < 0), 0)
            along_CD = (gradient_Cj[:, None] @ rows_CjD)[:, 0]
            length_C = gradient_Cj.square().sum(1) / along_CD.square().sum(1).clamp_min(tiny)
            change_Cj = length_C[:, None] * gradient_Cj
            if not signed:
                change_Cj = (z_Cj + change_Cj).relu_() - z_Cj
                along_CD = (change_Cj[:, None] @ rows_CjD)[:, 0]
                share_C = (residual_CD * along_CD).sum(1) / along_CD.square().sum(1).clamp_min(tiny)
                change_Cj *= share_C.clamp(0, 1)[:, None]
            z_Cj += change_Cj
            residual_CD = x_CD - (z_Cj[:, None] @ rows_CjD)[:, 0]
    return all_Ck, codes_Ck if signed else codes_Ck.relu_()
