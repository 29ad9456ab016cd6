"""AuxK's error and its gradients in one pass over the vectors (Gao et al. 2024, 2406.04093).

N vectors, C vectors of a chunk, D and E site widths that are read and written, A dead latents.
"""

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from rayscope.dictionaries.sparse.selection import CHUNK, bfloat16_pays, largest_in_rows


def auxk_error(
    W_enc_LD: Tensor, W_dec_LE: Tensor, dead_A: Tensor, x_ND: Tensor, e_NE: Tensor, auxk: int, signed: bool
) -> Tensor:
    """sum |e - z @ W_dec|^2, z = relu(dot) (signed: dot) of the auxk largest dot = x @ W_enc.T (signed: |dot|) among
    each vector's dead latents (rising, each once); all A of them if auxk >= A.

    Gradients reach the weights, as sparse rows; x and e are data. The error is quadratic, so its gradients follow from
    z in the same pass: five products of 2 N A D FLOP, in bfloat16 where that pays. Nothing of size [N, A] outlives its
    chunk.
    """
    return _AuxKError.apply(W_enc_LD, W_dec_LE, dead_A, x_ND, e_NE, auxk, signed)  # type: ignore[return-value]


class _AuxKError(Function):
    @staticmethod
    def forward(ctx, W_enc_LD, W_dec_LE, dead_A, x_ND, e_NE, auxk, signed):
        W_enc_AD, W_dec_AE = (t.index_select(0, dead_A) for t in (W_enc_LD, W_dec_LE))
        low = torch.bfloat16 if bfloat16_pays(W_enc_AD) else W_enc_AD.dtype
        enc_AD, dec_AE = W_enc_AD.to(low), W_dec_AE.to(low)
        error = e_NE.new_zeros(())
        grad_enc_AD, grad_dec_AE = torch.zeros_like(W_enc_AD), torch.zeros_like(W_dec_AE)
        rows = max(64, CHUNK // len(enc_AD))
        for x_CD, e_CE in zip(x_ND.split(rows), e_NE.split(rows), strict=True):
            x_CD = x_CD.to(low)
            z_CA = codes(x_CD @ enc_AD.T, auxk, signed)
            off_CE = (z_CA @ dec_AE) - e_CE
            error += torch.linalg.vecdot(off_CE.flatten(), off_CE.flatten())
            slope_CE = off_CE.to(low)  # half of it: the other factor of 2 comes last
            slope_CA = (slope_CE @ dec_AE.T).masked_fill_(z_CA == 0, 0)
            if ctx.needs_input_grad[0]:
                grad_enc_AD += slope_CA.T @ x_CD
            if ctx.needs_input_grad[1]:
                grad_dec_AE += z_CA.T @ slope_CE
        ctx.save_for_backward(dead_A, grad_enc_AD, grad_dec_AE)
        ctx.latents = len(W_enc_LD)
        return error

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        dead_A, *of_weights = ctx.saved_tensors

        def of_all(rows: Tensor) -> Tensor:
            shape = (ctx.latents, *rows.shape[1:])
            return torch.sparse_coo_tensor(
                dead_A[None], rows * (2 * grad), shape, is_coalesced=True, check_invariants=False
            )

        wanted = zip(of_weights, ctx.needs_input_grad[:2], strict=True)
        return *(of_all(rows) if needed else None for rows, needed in wanted), *(None,) * 5


def codes(dots_CA: Tensor, auxk: int, signed: bool) -> Tensor:
    """z_CA, in the products' precision."""
    if auxk >= dots_CA.shape[1]:
        return dots_CA if signed else dots_CA.relu_()
    chosen = largest_in_rows(dots_CA, dots_CA.new_zeros(dots_CA.shape[1], dtype=torch.float32), auxk, signed)
    values = dots_CA.gather(1, chosen)
    return torch.zeros_like(dots_CA).scatter_(1, chosen, values if signed else values.relu_())
