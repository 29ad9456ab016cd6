"""AuxK's error and its gradients in one pass over the vectors (Gao et al. 2024, 2406.04093).

N vectors, C vectors of a chunk, D site width, A dead latents.
"""

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from rayscope.dictionaries.sparse.selection import CHUNK, bfloat16_pays, largest_in_rows


def auxk_error(
    W_enc_LD: Tensor,
    b_enc_L: Tensor,
    b_dec_D: Tensor,
    W_dec_LD: Tensor,
    dead_A: Tensor,
    x_ND: Tensor,
    e_ND: Tensor,
    auxk: int,
    signed: bool,
) -> Tensor:
    """sum |e - z @ W_dec|^2, z = relu(pre) (signed: pre) of the auxk largest pre = (x - b_dec) @ W_enc.T + b_enc
    (signed: |pre|) among each vector's dead latents (rising, each once); all A of them if auxk >= A.

    Gradients reach the parameters (those of the weights as sparse rows); x and e are data. The error is quadratic, so
    its gradients follow from z in the same pass: five products of 2 N A D FLOP, in bfloat16 where that pays. Nothing of
    size [N, A] outlives its chunk.
    """
    return _AuxKError.apply(W_enc_LD, b_enc_L, b_dec_D, W_dec_LD, dead_A, x_ND, e_ND, auxk, signed)  # type: ignore[return-value]


class _AuxKError(Function):
    @staticmethod
    def forward(ctx, W_enc_LD, b_enc_L, b_dec_D, W_dec_LD, dead_A, x_ND, e_ND, auxk, signed):
        W_enc_AD, b_enc_A, W_dec_AD = (t.index_select(0, dead_A) for t in (W_enc_LD, b_enc_L, W_dec_LD))
        low = torch.bfloat16 if bfloat16_pays(W_enc_AD) else W_enc_AD.dtype
        enc_AD, dec_AD = W_enc_AD.to(low), W_dec_AD.to(low)
        error = e_ND.new_zeros(())
        grad_enc_AD, grad_b_A, grad_dec_AD = map(torch.zeros_like, (W_enc_AD, b_enc_A, W_dec_AD))
        rows = max(64, CHUNK // len(enc_AD))
        for x_CD, e_CD in zip(x_ND.split(rows), e_ND.split(rows), strict=True):
            centred_CD = (x_CD - b_dec_D).to(low)
            z_CA = codes(centred_CD @ enc_AD.T, b_enc_A, auxk, signed)
            off_CD = (z_CA @ dec_AD) - e_CD
            error += torch.linalg.vecdot(off_CD.flatten(), off_CD.flatten())
            slope_CD = off_CD.to(low)  # half of it: the other factor of 2 comes last
            slope_CA = (slope_CD @ dec_AD.T).masked_fill_(z_CA == 0, 0)
            grad_enc_AD += slope_CA.T @ centred_CD
            grad_b_A += slope_CA.sum(0, dtype=b_enc_A.dtype)
            if ctx.needs_input_grad[3]:
                grad_dec_AD += z_CA.T @ slope_CD
        ctx.save_for_backward(dead_A, grad_enc_AD, grad_b_A, -(grad_b_A @ W_enc_AD), grad_dec_AD)
        ctx.latents = len(W_enc_LD)
        return error

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        dead_A, grad_enc_AD, grad_b_A, grad_b_dec_D, grad_dec_AD = ctx.saved_tensors
        needed, grad = ctx.needs_input_grad, 2 * grad

        def of_all(rows: Tensor) -> Tensor:
            shape = (ctx.latents, *rows.shape[1:])
            return torch.sparse_coo_tensor(dead_A[None], rows * grad, shape, is_coalesced=True, check_invariants=False)

        return (
            of_all(grad_enc_AD) if needed[0] else None,
            of_all(grad_b_A).to_dense() if needed[1] else None,
            grad_b_dec_D * grad if needed[2] else None,
            of_all(grad_dec_AD) if needed[3] else None,
            *(None,) * 5,
        )


def codes(products_CA: Tensor, b_A: Tensor, auxk: int, signed: bool) -> Tensor:
    """z_CA, in the products' precision."""
    if auxk >= len(b_A):
        pre_CA = products_CA + b_A
        return (pre_CA if signed else pre_CA.relu_()).to(products_CA.dtype)
    chosen = largest_in_rows(products_CA, b_A, auxk, signed)
    values = products_CA.gather(1, chosen) + b_A[chosen]
    values = values if signed else values.relu_()
    return torch.zeros_like(products_CA).scatter_(1, chosen, values.to(products_CA.dtype))
