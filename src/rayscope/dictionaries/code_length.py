"""Bits per token of a sparse code: what dictionaries of different kinds and sizes are compared at.

N vectors, L latents, M non-zero codes of N vectors.
"""

import math

import torch
from torch import Tensor

LN2 = math.log(2)
VALUE_BITS = 8  # of a value, unless another number is given


def bits(
    latents: int,
    k: float | Tensor,
    signed: bool,
    fixed_support: bool = False,
    dense: int = 0,
    value_bits: int = VALUE_BITS,
) -> float | Tensor:
    """Bits per token of k non-zero codes of b = value_bits: log2 C(L, k) + b k, and k more for signs.

    The first term says which latents are active: 0 if the support never changes (the first k principal components).
    `dense` latents are active in every code and not counted in k: log2 C(L - dense, k), and b + 1 bits for each.
    """
    k_tensor = torch.as_tensor(k, dtype=torch.float64)
    size = torch.tensor(float(latents - dense), dtype=torch.float64)
    choose = torch.lgamma(size + 1) - torch.lgamma(k_tensor + 1) - torch.lgamma(size - k_tensor + 1)
    total = (0 if fixed_support else choose / LN2) + (value_bits + signed) * k_tensor + (value_bits + 1) * dense
    return total if isinstance(k, Tensor) else float(total)


def k_of_bits(
    budget: float,
    latents: int,
    signed: bool,
    fixed_support: bool = False,
    dense: int = 0,
    value_bits: int = VALUE_BITS,
) -> int:
    """The least k whose code costs at least `budget` bits per token; all latents if none does."""
    for k in range(1, latents - dense + 1):
        if bits(latents, k, signed, fixed_support, dense, value_bits) >= budget:
            return k
    return latents - dense


def bits_entropy(
    indices_M: Tensor,
    offsets: Tensor,
    frequency_L: Tensor,
    signed: bool,
    fixed_support: bool = False,
    dense: int = 0,
    value_bits: int = VALUE_BITS,
) -> Tensor:
    """(N): bits of each code under the latents' own firing frequencies, 0 < p < 1 (MDL, 2410.11179).

    -sum_active log2 p - sum_silent log2 (1 - p), which is one constant plus log2 (1 - p) / p per active latent; 0 if
    the support never changes. Added to it: value_bits for each active latent, 1 for its sign, value_bits + 1 for each
    of the last `dense` latents, which are always active. Code n is indices_M[offsets[n] : offsets[n + 1]].
    """
    latents = len(frequency_L) - dense
    p_L = frequency_L.double()
    active_L = torch.full_like(p_L, float(value_bits + signed))
    base = p_L.new_tensor(float((value_bits + 1) * dense))
    if not fixed_support:
        active_L += ((1 - p_L) / p_L).log2()
        base -= torch.log1p(-p_L[:latents]).sum() / LN2
    active_L[latents:] = 0
    vectors = torch.arange(len(offsets) - 1, device=offsets.device)
    rows_M = vectors.repeat_interleave(offsets.diff(), output_size=len(indices_M))
    return base.expand(len(vectors)).index_add(0, rows_M, active_L[indices_M])


def entropy(counts: Tensor) -> float:
    """H in bits of the distribution that is in proportion to the counts."""
    p = counts[counts > 0].double() / counts.sum()
    return -(p * p.log2()).sum().item()
