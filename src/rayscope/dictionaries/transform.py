"""Transform: principal components as a transform code, each with bits of its own.

N vectors, D site width, L latents.
"""

import math
from typing import Any

import torch
from torch import Tensor

from rayscope.dictionaries.base import Codes
from rayscope.dictionaries.code_length import VALUE_BITS
from rayscope.dictionaries.linear import Linear

MOST = 8  # bits of a component


class Transform(Linear):
    """z_l = (x - bias) . w_l of ranked orthonormal directions, component l on 2^bits_l levels, its sign among them.

    Bits are those of reverse water-filling (Cover and Thomas, Elements of Information Theory, 10.3.3), in whole bits:
    each goes to the component of the largest remaining distortion, variance / 4^bits. There is no index: the first k
    components are those that have any. `value_bits` say nothing here. variances: of the components, greatest first.
    """

    kind = "transform"
    variances_L: Tensor
    bits_L: Tensor

    def __init__(
        self,
        width: int,
        latents: int,
        k: int = 1,
        directions: Tensor | None = None,
        bias: Tensor | None = None,
        variances: Tensor | None = None,
    ):
        super().__init__(width, latents, k, "prefix", directions, bias)
        given = torch.zeros(latents) if variances is None else variances.detach().clamp(min=0).float()
        if given.shape != (latents,) or not (given.diff() <= 0).all():
            raise ValueError(f"variances of shape {tuple(given.shape)}; they must be {latents}, the greatest first")
        self.register_buffer("variances_L", given)
        self.register_buffer("bits_L", (torch.arange(latents) < k).long())

    def arguments(self) -> dict[str, Any]:
        return {"width": self.width, "latents": self.latents, "k": self.k}

    @property
    def allocation_L(self) -> Tensor:
        return self.bits_L

    def bits(self, k: int | None = None, value_bits: int = VALUE_BITS) -> float:
        """The sum of its components' bits; at another k, the fewest at which so many have any."""
        return float((self.bits_L if k is None else self.reaching(k)).sum())

    def bits_entropy(self, codes: Codes, frequency_L: Tensor, value_bits: int = VALUE_BITS) -> Tensor:
        return torch.full((len(codes),), self.bits(), dtype=torch.float64, device=codes.offsets.device)

    def k_of_bits(self, budget: float, value_bits: int = VALUE_BITS) -> int:
        return int((water_filled(self.variances_L, whole_bits(budget)) > 0).sum())

    def at_bits(self, budget: float, value_bits: int = VALUE_BITS, max_k: int | None = None) -> "Transform":
        """The same components with at least `budget` bits, up to MOST each; max_k: the most that have any."""
        variances_L = self.variances_L.clone()
        if max_k is not None:
            variances_L[max_k:] = 0
        return self.with_bits(water_filled(variances_L, whole_bits(budget)))

    def with_k(self, k: int) -> "Transform":
        return self.with_bits(self.reaching(k))

    def with_bits(self, bits_L: Tensor) -> "Transform":
        other = Transform(self.width, self.latents, int((bits_L > 0).sum()))
        other.load_weights({**self.weights(), "bits_L": bits_L})
        other.provenance = dict(self.provenance)
        return other.to(self.device).eval()

    def reaching(self, k: int) -> Tensor:
        """(L): the bits at which the k-th component gets its first."""
        ratios_LB = distortions(self.variances_L) >= self.variances_L[k - 1].double()
        return (ratios_LB.sum(1) * (torch.arange(self.latents, device=self.device) < k)).clamp(max=MOST)


def whole_bits(budget: float) -> int:
    """The least whole number of bits that is not less, to what logarithms of factorials are exact to."""
    return math.ceil(budget - 1e-6)


def distortions(variances_L: Tensor) -> Tensor:
    """(L, MOST): variance / 4^b of a component that has b bits, b = 0, 1, ..."""
    return variances_L.double()[:, None] / 4.0 ** torch.arange(MOST, device=variances_L.device)


def water_filled(variances_L: Tensor, budget: int) -> Tensor:
    """(L): whole bits of each component, `budget` in all, or MOST for every component that varies."""
    order = distortions(variances_L).flatten().argsort(descending=True, stable=True)
    order = order[: min(max(budget, 1), MOST * max(int((variances_L > 0).sum()), 1))]
    return (order // MOST).bincount(minlength=len(variances_L))
