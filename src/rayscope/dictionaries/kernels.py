"""The k-sparse step: which latents, then their exact values, the decode, and both gradients, without an [N, L] tensor.

N vectors, C vectors of a chunk, D site width, L latents, M chosen (vector, latent) pairs, A dead latents.

The choice needs no gradient: it is made in chunks, in bfloat16 where that pays. The values of the M pairs are then
computed again in full precision, so only the choice is ever approximate. Both weight gradients are sums over the
vectors that chose a latent: one stable sort of the pairs by latent (`Plan`) serves them all. Every sum has one fixed
order, so a step gives the same bits whenever it is repeated with the same number of threads.
"""

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F

CHUNK = 512  # vectors whose pre-activations exist at one time
FAST_SIZE = 2**18  # width * latents from which casting the weights to bfloat16 costs less than it saves


class Plan:
    """M chosen pairs: vector n chose latents indices_M[offsets[n] : offsets[n + 1]] (N + 1 offsets)."""

    def __init__(self, indices_M: Tensor, offsets: Tensor, latents: int):
        self.indices_M, self.offsets, self.latents = indices_M, offsets, latents

    @classmethod
    def of_rows(cls, indices_Nk: Tensor, latents: int) -> "Plan":
        N, k = indices_Nk.shape
        offsets = torch.arange(N + 1, device=indices_Nk.device) * k
        return cls(indices_Nk.flatten(), offsets, latents)

    @classmethod
    def of_positions(cls, positions_M: Tensor, vectors: int, latents: int) -> "Plan":
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
        """x_n . W_l of every pair: the kernel behind embedding_bag's gradient for its weights, which copies no row."""
        if len(self) == 0:
            return x_ND.new_zeros(0)
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            x_ND.contiguous(), W_LD.contiguous(), self.indices_M, self.offsets, self.rows_M, 0
        )

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
    def forward(ctx, x_ND, W_LD, b_L, centre_D, plan):
        centred_ND = x_ND - centre_D
        ctx.plan = plan
        ctx.save_for_backward(centred_ND, W_LD)
        return plan.dots(centred_ND, W_LD) + b_L[plan.indices_M]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_M):
        centred_ND, W_LD = ctx.saved_tensors
        _, for_W, for_b, for_centre, _ = ctx.needs_input_grad
        grad_M = grad_M.contiguous()
        grad_W_LD = ctx.plan.sum_by_latent(grad_M, centred_ND) if for_W else None
        grad_b_L = ctx.plan.total_by_latent(grad_M) if for_b or for_centre else None
        grad_centre_D = -(grad_b_L @ W_LD) if for_centre else None
        return None, grad_W_LD, grad_b_L, grad_centre_D, None


class _SparseDecode(Function):
    @staticmethod
    def forward(ctx, values_M, W_LD, plan):
        ctx.plan = plan
        ctx.save_for_backward(values_M, W_LD)
        return plan.sum_by_vector(values_M.contiguous(), W_LD)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_ND):
        values_M, W_LD = ctx.saved_tensors
        grad_ND = grad_ND.contiguous()
        grad_values_M = ctx.plan.dots(grad_ND, W_LD) if ctx.needs_input_grad[0] else None
        grad_W_LD = ctx.plan.sum_by_latent(values_M, grad_ND) if ctx.needs_input_grad[1] else None
        return grad_values_M, grad_W_LD, None


def gather_dot(x_ND: Tensor, W_LD: Tensor, b_L: Tensor, centre_D: Tensor, plan: Plan) -> Tensor:
    """(M): (x_n - centre) . W_l + b_l of the pairs of a plan, with gradients to W, b and centre.

    x is data: its gradient, a dense matmul, is never formed, and an x that asks for one is refused.
    """
    if x_ND.requires_grad:
        raise ValueError("gather_dot gives no gradient to x; detach it")
    return _GatherDot.apply(x_ND, W_LD, b_L, centre_D, plan)  # type: ignore[return-value]


def sparse_decode(values_M: Tensor, W_LD: Tensor, plan: Plan) -> Tensor:
    """(N, D): z @ W of the sparse z that a plan and its values make, with gradients to both."""
    return _SparseDecode.apply(values_M, W_LD, plan)  # type: ignore[return-value]


def bfloat16_pays(W_LD: Tensor) -> bool:
    """Whether choosing in bfloat16 is faster here: a CPU with AVX512-bf16 or AMX (or a GPU), and enough weights."""
    if W_LD.dtype != torch.float32 or W_LD.numel() < FAST_SIZE:
        return False
    if W_LD.device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if W_LD.device.type != "cpu" or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def preactivations(centred_ND: Tensor, W_LD: Tensor, b_L: Tensor, exact: bool = True) -> Iterator[tuple[int, Tensor]]:
    """Yields (first vector, pre_CL = centred @ W.T + b) by chunks, without gradient; their memory is reused.

    `exact` False allows bfloat16 products, good enough to choose by.
    """
    x_ND, W_LD, b_L = centred_ND.detach(), W_LD.detach(), b_L.detach()
    if not exact and bfloat16_pays(W_LD):
        W_bf, b_bf = W_LD.bfloat16(), b_L.bfloat16()
        pre_CL = x_ND.new_empty(min(CHUNK, len(x_ND)), len(W_LD))
        for start in range(0, len(x_ND), CHUNK):
            chunk_CD = x_ND[start : start + CHUNK].bfloat16()
            yield start, pre_CL[: len(chunk_CD)].copy_(F.linear(chunk_CD, W_bf, b_bf))
        return
    pre_CL = x_ND.new_empty(min(CHUNK, len(x_ND)), len(W_LD))
    for start in range(0, len(x_ND), CHUNK):
        chunk_CD = x_ND[start : start + CHUNK]
        yield start, torch.addmm(b_L, chunk_CD, W_LD.T, out=pre_CL[: len(chunk_CD)])


class _DeadCandidates:
    """The `auxk` dead latents with the largest pre-activations of every vector, chunk by chunk."""

    def __init__(self, dead_A: Tensor, auxk: int, signed: bool):
        self.dead_A, self.auxk, self.signed = dead_A, min(auxk, len(dead_A)), signed
        self.chunks: list[Tensor] = []

    def take(self, pre_CL: Tensor) -> None:
        if self.auxk == 0:
            return
        if self.auxk == len(self.dead_A):
            self.chunks.append(self.dead_A.expand(len(pre_CL), -1))
            return
        pre_CA = pre_CL.index_select(1, self.dead_A)
        self.chunks.append(
            self.dead_A[(pre_CA.abs_() if self.signed else pre_CA).topk(self.auxk, sorted=False).indices]
        )

    def plan(self, latents: int) -> Plan | None:
        return Plan.of_rows(torch.cat(self.chunks), latents) if self.chunks else None


def choose_by_vector(
    centred_ND: Tensor, W_LD: Tensor, b_L: Tensor, k: int, signed: bool, dead_A: Tensor, auxk: int, exact: bool = False
) -> tuple[Plan, Plan | None]:
    """The k largest pre (signed: |pre|) of every vector; of the dead latents the auxk largest (None: none is dead)."""
    chosen, dead = [], _DeadCandidates(dead_A, auxk, signed)
    for _, pre_CL in preactivations(centred_ND, W_LD, b_L, exact):
        dead.take(pre_CL)
        chosen.append((pre_CL.abs_() if signed else pre_CL).topk(k, sorted=False).indices)
    return Plan.of_rows(torch.cat(chosen), len(W_LD)), dead.plan(len(W_LD))


def choose_by_batch(
    centred_ND: Tensor,
    W_LD: Tensor,
    b_L: Tensor,
    count: int,
    hint: float,
    dead_A: Tensor,
    auxk: int,
    exact: bool = False,
) -> tuple[Plan, Plan | None]:
    """The `count` largest positive pre of the whole batch (all, where fewer are positive); dead ones as above."""
    dead = _DeadCandidates(dead_A, auxk, signed=False)
    positions_M, _ = largest(centred_ND, W_LD, b_L, count, hint, exact, dead)
    return Plan.of_positions(positions_M, len(centred_ND), len(W_LD)), dead.plan(len(W_LD))


def largest(
    centred_ND: Tensor,
    W_LD: Tensor,
    b_L: Tensor,
    count: int,
    hint: float = 0.0,
    exact: bool = True,
    dead: _DeadCandidates | None = None,
) -> tuple[Tensor, Tensor]:
    """(positions n * L + l in rising order, values) of the `count` largest positive pre-activations of the batch.

    Candidates above a floor are kept; whenever there are over 2 * count the largest count stay and the floor rises to
    their least. It starts at `hint`, a guess that only saves time: where fewer than count exceed it, it starts at 0.
    """
    floor, positions, values, held = max(hint, 0.0), [], [], 0
    if dead is not None:
        dead.chunks.clear()
    for start, pre_CL in preactivations(centred_ND, W_LD, b_L, exact):
        if dead is not None:
            dead.take(pre_CL)
        flat = pre_CL.flatten()
        found = (flat > floor).nonzero()[:, 0]
        positions.append(found + start * len(W_LD))
        values.append(flat[found])
        held += len(found)
        if held > 2 * count:
            kept_positions, kept_values = _prune(torch.cat(positions), torch.cat(values), count)
            positions, values, held, floor = [kept_positions], [kept_values], count, kept_values.min().item()
    if held < count and hint > 0:
        return largest(centred_ND, W_LD, b_L, count, 0.0, exact, dead)
    return _prune(torch.cat(positions), torch.cat(values), count)


def _prune(positions_M: Tensor, values_M: Tensor, count: int) -> tuple[Tensor, Tensor]:
    if len(values_M) <= count:
        return positions_M, values_M
    kept = values_M.topk(count, sorted=False).indices.sort().values
    return positions_M[kept], values_M[kept]
