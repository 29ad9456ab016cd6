"""Which latents: the largest pre-activations of each vector, or of a batch, without an [N, L] tensor.

N vectors, C vectors of a chunk, D site width, L latents, M chosen (vector, latent) pairs.

A choice needs no gradient. The products x . W are computed in chunks that stay in cache, in bfloat16 where that pays,
and scanned while they are there (by native.py; by PyTorch's topk without a compiler, on a GPU and in float64).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from rayscope.dictionaries.sparse import native
from rayscope.dictionaries.sparse.kernels import SparsePattern

CHUNK = 2**23  # products in memory at a time, on a CPU: 16 MB in bfloat16
CHUNK_GPU = 2**27  # on a GPU, which wants larger products
FAST_SIZE = 2**18  # width * latents from which casting the weights to bfloat16 costs less than it saves


def bfloat16_pays(W_LD: Tensor) -> bool:
    """Whether choosing in bfloat16 is faster here: a CPU with AVX512-bf16 or AMX (or a GPU), and enough weights."""
    if W_LD.dtype != torch.float32 or W_LD.numel() < FAST_SIZE:
        return False
    if W_LD.device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if W_LD.device.type != "cpu" or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def products(x_ND: Tensor, W_LD: Tensor, exact: bool) -> Iterator[tuple[int, Tensor]]:
    """Yields (first vector, x @ W.T) by chunks, without gradient; their memory is reused.

    `exact` False allows bfloat16, which is enough to choose by. 2 N D L FLOP; W is read once per chunk.
    """
    x_ND, W_LD = x_ND.detach(), W_LD.detach()
    if not exact and bfloat16_pays(W_LD):
        x_ND, W_LD = x_ND.bfloat16(), W_LD.bfloat16()
    rows = max(1, (CHUNK if x_ND.device.type == "cpu" else CHUNK_GPU) // len(W_LD))
    rows = rows - rows % 64 if rows > 64 else rows
    buffer_CL = x_ND.new_empty(min(rows, len(x_ND)), len(W_LD))
    for start in range(0, len(x_ND), rows):
        chunk_CD = x_ND[start : start + rows]
        yield start, torch.mm(chunk_CD, W_LD.T, out=buffer_CL[: len(chunk_CD)])


def largest_in_rows(products_CL: Tensor, b_L: Tensor, k: int, signed: bool) -> Tensor:
    """indices_Ck of the k largest products + b (signed: |products + b|) of each row, in no order; NaN is the least."""
    indices_Ck = native.largest_of_rows(products_CL, b_L, k, signed)
    if indices_Ck is None:
        pre_CL = products_CL + b_L
        size_CL = pre_CL.abs_() if signed else pre_CL
        indices_Ck = size_CL.masked_fill_(size_CL.isnan(), -torch.inf).topk(k, sorted=False).indices
    return indices_Ck


def above(products_CL: Tensor, b_L: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """(counts_C, places, values) of all products + b above the floor; place c * L + l, in rising order."""
    chosen = native.above(products_CL, b_L, floor)
    if chosen is None:
        pre_CL = products_CL + b_L
        kept_CL = pre_CL > floor
        chosen = kept_CL.sum(1), kept_CL.flatten().nonzero()[:, 0], pre_CL[kept_CL]
    return chosen  # type: ignore[return-value]


def choose_by_vector(x_ND: Tensor, W_LD: Tensor, b_L: Tensor, k: int, signed: bool) -> SparsePattern:
    """The k largest pre = x @ W.T + b (signed: |pre|) of each vector."""
    b_L = b_L.detach()
    chosen = [largest_in_rows(products_CL, b_L, k, signed) for _, products_CL in products(x_ND, W_LD, exact=False)]
    none = torch.zeros(0, k, dtype=torch.int64, device=x_ND.device)
    return SparsePattern.of_rows(torch.cat([none, *chosen]), len(W_LD))


def choose_by_batch(x_ND: Tensor, W_LD: Tensor, b_L: Tensor, count: int, hint: float) -> SparsePattern:
    """The `count` largest positive pre = x @ W.T + b of the whole batch; all positive ones if they are fewer."""
    places_M, _ = largest(x_ND, W_LD, b_L, count, hint, exact=False)
    return SparsePattern.of_positions(places_M, len(x_ND), len(W_LD))


def choose_above(x_ND: Tensor, W_LD: Tensor, b_L: Tensor) -> SparsePattern:
    """Every pre = x @ W.T + b above 0."""
    b_L, places = b_L.detach(), [torch.zeros(0, dtype=torch.int64, device=x_ND.device)]
    for start, products_CL in products(x_ND, W_LD, exact=False):
        places.append(above(products_CL, b_L, 0.0)[1] + start * len(W_LD))
    return SparsePattern.of_positions(torch.cat(places), len(x_ND), len(W_LD))


def threshold_for(x_ND: Tensor, W_LD: Tensor, b_L: Tensor, count: int, hint: float = 0.0) -> Tensor:
    """Half-way between the count-th largest pre = x @ W.T + b and the next; 0 if no more than count are positive."""
    _, values_M = largest(x_ND, W_LD, b_L, count + 1, hint)
    least = values_M.topk(2, largest=False).values if len(values_M) > max(count, 1) else values_M.new_zeros(2)
    return least.mean()


def largest(
    x_ND: Tensor, W_LD: Tensor, b_L: Tensor, count: int, hint: float = 0.0, exact: bool = True
) -> tuple[Tensor, Tensor]:
    """(places n * L + l in rising order, values) of the `count` largest positive pre-activations of the batch.

    Candidates above a floor are kept; whenever they are over 2 * count, the largest count stay and the floor rises to
    the smallest of these. It starts at `hint`, a guess that only saves time: if fewer than count exceed it, at 0.
    """
    b_L = b_L.detach()
    floor, held = max(hint, 0.0), 0
    places, values = [torch.zeros(0, dtype=torch.int64, device=x_ND.device)], [x_ND.new_zeros(0)]
    for start, products_CL in products(x_ND, W_LD, exact):
        _, places_in_chunk, pre = above(products_CL, b_L, floor)
        places.append(places_in_chunk + start * len(W_LD))
        values.append(pre)
        held += len(pre)
        if held > 2 * count:
            kept_places, kept_values = _prune(torch.cat(places), torch.cat(values), count)
            places, values, held, floor = [kept_places], [kept_values], count, kept_values.min().item()
    if held < count and hint > 0:
        return largest(x_ND, W_LD, b_L, count, 0.0, exact)
    return _prune(torch.cat(places), torch.cat(values), count)


def _prune(places_M: Tensor, values_M: Tensor, count: int) -> tuple[Tensor, Tensor]:
    if len(values_M) <= count:
        return places_M, values_M
    kept = values_M.topk(count, sorted=False).indices.sort().values
    return places_M[kept], values_M[kept]
