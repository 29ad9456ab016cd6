"""Refined codes: a short pursuit among the latents that an encoder puts first, with least squares on what it chooses.

N vectors, C vectors of a chunk, D site width, L latents, S candidates of a vector, K codes at most.
"""

import torch
from torch import Tensor

from rayscope.dictionaries.coders.support import solve
from rayscope.dictionaries.sparse import native

STAGES = 2  # in which the second half of a support is taken (refine.c has the same)
CHUNK = 2**24  # numbers of candidates' rows held at a time


@torch.no_grad()
def refine_codes(
    x_ND: Tensor, W_LD: Tensor, candidates_NS: Tensor, pre_NS: Tensor, own_N: Tensor, times: int, signed: bool
) -> tuple[Tensor, Tensor]:
    """(indices, values), both (N, K): codes of x = z W on rows of W of unit length, at most own_N of each vector.

    The own_N greatest pre (signed: |pre|) among a vector's candidates are its own codes (rays: relu(pre)), and the
    times * own_N greatest may be used. The first half of its own are kept. The second half is taken in STAGES: those
    of greatest r . w (signed: |r . w|), r = x - z W, z least squares on the support so far. What gets no code then
    (rays: no positive one) leaves the support for good. So the result is least squares on its support; where |r| would
    be above that of the vector's own codes, these stay. The rest is 0. K: the greatest own_N.
    """
    codes = native.refine_codes(x_ND, W_LD, candidates_NS, pre_NS, own_N, times, signed)
    if codes is not None:
        return codes
    K = int(own_N.max()) if len(own_N) else 0
    rows = max(1, CHUNK // max(1, candidates_NS.shape[1] * x_ND.shape[1]))
    pieces = zip(x_ND.split(rows), candidates_NS.split(rows), pre_NS.split(rows), own_N.split(rows), strict=True)
    parts = [
        _pursue(x_CD, W_LD, candidates_CS, pre_CS, own_C, times, K, signed)
        for x_CD, candidates_CS, pre_CS, own_C in pieces
    ]
    return torch.cat([indices for indices, _ in parts]), torch.cat([values for _, values in parts])


def _pursue(
    x_CD: Tensor, W_LD: Tensor, candidates_CS: Tensor, pre_CS: Tensor, own_C: Tensor, times: int, K: int, signed: bool
) -> tuple[Tensor, Tensor]:
    score_CS, order_CS = (pre_CS.abs() if signed else pre_CS).sort(dim=1, descending=True, stable=True)
    candidates_CS, pre_CS = candidates_CS.gather(1, order_CS), pre_CS.gather(1, order_CS)
    rank_S, own_C1 = torch.arange(score_CS.shape[1], device=x_CD.device), own_C[:, None]
    rows_CSD = W_LD[candidates_CS]
    gram_CSS = (rows_CSD @ rows_CSD.mT).double()
    fit_CS = (rows_CSD @ x_CD[:, :, None])[:, :, 0].double()

    def residual(z_CS: Tensor) -> Tensor:
        return x_CD - (z_CS.to(x_CD.dtype)[:, None] @ rows_CSD)[:, 0]

    support_CS = rank_S < own_C1 // 2
    open_CS = (rank_S < times * own_C1) & ~support_CS
    z_CS, support_CS = _least_squares(gram_CSS, fit_CS, support_CS, signed)
    for stage in range(1, STAGES + 1):
        room_C1 = own_C1 // 2 + (own_C1 - own_C1 // 2) * stage // STAGES - support_CS.sum(1, keepdim=True)
        slope_CS = (rows_CSD @ residual(z_CS)[:, :, None])[:, :, 0]
        slope_CS = (slope_CS.abs() if signed else slope_CS).masked_fill(~open_CS, -torch.inf)
        first_CS = slope_CS.argsort(dim=1, descending=True, stable=True).argsort(1) < room_C1
        new_CS = first_CS & (slope_CS > 0)
        open_CS = open_CS & ~new_CS
        z_CS, support_CS = _least_squares(gram_CSS, fit_CS, support_CS | new_CS, signed)
    own_CS = torch.where(rank_S < own_C1, pre_CS if signed else pre_CS.relu(), 0).double()
    better_C = residual(z_CS).square().sum(1) <= residual(own_CS).square().sum(1)
    z_CS = torch.where(better_C[:, None], z_CS, own_CS)
    places_CK = (z_CS != 0).to(x_CD.dtype).topk(K).indices
    return candidates_CS.gather(1, places_CK), z_CS.gather(1, places_CK).to(x_CD.dtype)


def _least_squares(gram_CSS: Tensor, fit_CS: Tensor, support_CS: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """(z, support): least squares on the support, less what gets no code (rays: no positive one)."""
    while True:
        inner_CSS = gram_CSS * (support_CS[:, :, None] & support_CS[:, None, :]) + torch.diag_embed(
            (~support_CS).to(gram_CSS)
        )
        z_CS = solve(inner_CSS, fit_CS * support_CS) * support_CS
        kept_CS = support_CS & (z_CS != 0 if signed else z_CS > 0)
        if (kept_CS == support_CS).all():
            return z_CS, support_CS
        support_CS = kept_CS
