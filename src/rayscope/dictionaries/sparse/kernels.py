"""The k-sparse step: the exact values of chosen latents, the decode, and both gradients, without an [N, L] tensor.

N vectors, D site width, L latents, M chosen (vector, latent) pairs.

Only the choice of pairs (selection.py) may use bfloat16; their values, computed here, never do. (AuxK's codes of dead
latents are exempt.) Both weight gradients are sums over the vectors that chose a latent, and one stable sort of the
pairs by latent (`SparsePattern`) serves both. Every sum has a fixed order, so a step is bitwise repeatable with the
same number of threads. Each function reads M rows of D numbers: 2 M D FLOP, 4 M D bytes.
"""

from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F

from rayscope.dictionaries.sparse import native


class SparsePattern:
    """M chosen pairs in compressed rows: vector n chose latents indices_M[offsets[n] : offsets[n + 1]]."""

    def __init__(self, indices_M: Tensor, offsets: Tensor, latents: int):
        self.indices_M, self.offsets, self.latents = indices_M, offsets, latents

    @classmethod
    def of_rows(cls, indices_Nk: Tensor, latents: int) -> "SparsePattern":
        N, k = indices_Nk.shape
        offsets = torch.arange(N + 1, device=indices_Nk.device) * k
        return cls(indices_Nk.flatten(), offsets, latents)

    @classmethod
    def of_positions(cls, positions_M: Tensor, vectors: int, latents: int) -> "SparsePattern":
        """From sorted positions n * L + l in the flattened [N, L]."""
        counts_N = (positions_M // latents).bincount(minlength=vectors)
        return cls(positions_M % latents, F.pad(counts_N.cumsum(0), (1, 0)), latents)

    def __len__(self) -> int:
        return len(self.indices_M)

    @cached_property
    def rows_M(self) -> Tensor:
        vectors = torch.arange(len(self.offsets) - 1, device=self.offsets.device)
        return vectors.repeat_interleave(self.offsets.diff(), output_size=len(self))

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """(order of the pairs sorted by latent, their vectors in that order, L + 1 offsets of the latents)."""
        order_M = self.indices_M.argsort(stable=True)
        counts_L = self.indices_M.bincount(minlength=self.latents)
        return order_M, self.rows_M[order_M], F.pad(counts_L.cumsum(0), (1, 0))

    def dots(self, x_ND: Tensor, W_LD: Tensor) -> Tensor:
        """x_n . W_l of each pair; without select.c, by the kernel behind embedding_bag's gradient for its weights."""
        if len(self) == 0:
            return x_ND.new_zeros(0)
        x_ND, W_LD = x_ND.contiguous(), W_LD.contiguous()
        dots_M = native.dots_of_pairs(x_ND, W_LD, self.indices_M, self.offsets)
        if dots_M is None:
            dots_M = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                x_ND, W_LD, self.indices_M, self.offsets, self.rows_M, 0
            )
        return dots_M

    def sum_by_vector(self, values_M: Tensor, W_LD: Tensor) -> Tensor:
        """(N, D): z @ W."""
        if len(self) == 0:
            return W_LD.new_zeros(len(self.offsets) - 1, W_LD.shape[1])
        return F.embedding_bag(
            self.indices_M, W_LD, self.offsets, mode="sum", per_sample_weights=values_M, include_last_offset=True
        )

    def sum_by_latent(self, values_M: Tensor, x_ND: Tensor) -> Tensor:
        """(L, D): z.T @ x."""
        if len(self) == 0:
            return x_ND.new_zeros(self.latents, x_ND.shape[1])
        order_M, rows_M, offsets = self.by_latent
        weights_M = values_M[order_M]
        return F.embedding_bag(
            rows_M, x_ND, offsets, mode="sum", per_sample_weights=weights_M, include_last_offset=True
        )

    def total_by_latent(self, values_M: Tensor) -> Tensor:
        """(L): the column sums of z."""
        if len(self) == 0:
            return values_M.new_zeros(self.latents)
        order_M, _, offsets = self.by_latent
        return F.embedding_bag(order_M, values_M[:, None].contiguous(), offsets, mode="sum", include_last_offset=True)[
            :, 0
        ]


class _GatherDot(Function):
    @staticmethod
    def forward(ctx, x_ND, W_LD, b_L, centre_D, pattern):
        centred_ND = x_ND - centre_D
        ctx.pattern = pattern
        ctx.save_for_backward(centred_ND, W_LD)
        return pattern.dots(centred_ND, W_LD) + b_L[pattern.indices_M]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_M):
        centred_ND, W_LD = ctx.saved_tensors
        _, for_W, for_b, for_centre, _ = ctx.needs_input_grad
        grad_M = grad_M.contiguous()
        grad_W_LD = ctx.pattern.sum_by_latent(grad_M, centred_ND) if for_W else None
        grad_b_L = ctx.pattern.total_by_latent(grad_M) if for_b or for_centre else None
        grad_centre_D = -(grad_b_L @ W_LD) if for_centre else None
        return None, grad_W_LD, grad_b_L, grad_centre_D, None


class _SparseDecode(Function):
    @staticmethod
    def forward(ctx, values_M, W_LD, pattern):
        ctx.pattern = pattern
        ctx.save_for_backward(values_M, W_LD)
        return pattern.sum_by_vector(values_M.contiguous(), W_LD)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_ND):
        values_M, W_LD = ctx.saved_tensors
        grad_ND = grad_ND.contiguous()
        grad_values_M = ctx.pattern.dots(grad_ND, W_LD) if ctx.needs_input_grad[0] else None
        grad_W_LD = ctx.pattern.sum_by_latent(values_M, grad_ND) if ctx.needs_input_grad[1] else None
        return grad_values_M, grad_W_LD, None


class _OfLatents(Function):
    @staticmethod
    def forward(ctx, b_L, pattern):
        ctx.pattern = pattern
        return b_L[pattern.indices_M]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_M):
        return ctx.pattern.total_by_latent(grad_M.contiguous()), None


def gather_dot(x_ND: Tensor, W_LD: Tensor, b_L: Tensor, centre_D: Tensor, pattern: SparsePattern) -> Tensor:
    """(M): (x_n - centre) . W_l + b_l of the pairs of a pattern, with gradients to W, b and centre.

    x is data: its gradient, a dense matmul, is never formed, and an x that asks for one is refused.
    """
    if x_ND.requires_grad:
        raise ValueError("gather_dot gives no gradient to x; detach it")
    return _GatherDot.apply(x_ND, W_LD, b_L, centre_D, pattern)  # type: ignore[return-value]


def sparse_decode(values_M: Tensor, W_LD: Tensor, pattern: SparsePattern) -> Tensor:
    """(N, D): z @ W of the sparse z that a pattern and its values form, with gradients to values and W."""
    return _SparseDecode.apply(values_M, W_LD, pattern)  # type: ignore[return-value]


def of_latents(b_L: Tensor, pattern: SparsePattern) -> Tensor:
    """(M): b_l of the pairs of a pattern. Unlike that of b_L[indices], its gradient is a sum in a fixed order."""
    return _OfLatents.apply(b_L, pattern)  # type: ignore[return-value]
