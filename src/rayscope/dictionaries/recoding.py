"""Recoded: any dictionary's directions under another coder, which shows them apart from its encoder.

N vectors, C vectors of a chunk, D site width, L latents, r of them dense, R = L - r.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rayscope.dictionaries.base import Codes, Dictionary
from rayscope.dictionaries.coders import SEARCHES
from rayscope.dictionaries.learned.k_sparse import KSparse
from rayscope.dictionaries.linear import Linear

REFINED = "refined"  # the coder that keeps the encoder
CHUNK = 8192  # vectors whose codes are held in rows of one length
UNIT = 1e-6  # a length differs from 1 by less: rounding


def recoded(dictionary: Dictionary, coder: str, k: int | None = None) -> Dictionary:
    """The dictionary, or the same at another k, coded by topk, omp, pursuit or fista (see `Linear`), or refined (see
    `KSparse`, the kinds that can be)."""
    dictionary = dictionary if k is None else dictionary.with_k(k)
    if coder != REFINED:
        return Recoded(dictionary, coder)
    if not isinstance(dictionary, KSparse):
        raise ValueError(f"coder='{REFINED}': a {dictionary.kind} dictionary has no codes of k latents to refine")
    return dictionary.refined()


class Recoded(Dictionary):
    """Codes of y = x - bias(token) - z_dense W_dense by a coder, on the R directions that are not dense.

    The dense latents z_dense are those of the dictionary's own encoder, and so is the number of codes of each vector if
    it varies (D at most: more directions of D dimensions are dependent); else it is k. The FVU of the dictionary's own
    codes less the least FVU of a coder is its amortisation gap.

    Directions have unit length, as in `Linear`, except the dense ones. Raises ValueError for a dictionary that
    reconstructs another space than it encodes.
    """

    directions_LD: Tensor

    def __init__(self, dictionary: Dictionary, coder: str):
        super().__init__(dictionary.width, dictionary.latents, dictionary.k)
        if coder not in SEARCHES:
            raise ValueError(f"coder={coder!r}; it is one of {', '.join(SEARCHES)}")
        if dictionary.output_width != dictionary.width:
            raise ValueError(
                f"a {dictionary.kind} dictionary from width {dictionary.width} to {dictionary.output_width} "
                "has no other coder: what it reconstructs is not what it is given"
            )
        self.dictionary, self.coder, self.kind = dictionary, coder, dictionary.kind
        self.signed, self.adaptive = dictionary.signed, dictionary.adaptive
        self.dense, self.side = dictionary.dense, dictionary.side
        self.provenance = {**dictionary.provenance, "coder": coder}
        self.register_buffer("directions_LD", at_unit_length(dictionary.directions.detach().float(), self.rays))

    @property
    def rays(self) -> int:
        """R"""
        return self.latents - self.dense

    @property
    def directions(self) -> Tensor:
        return self.directions_LD

    @property
    def bias(self) -> Tensor:
        return self.dictionary.bias.detach()

    def bias_at(self, tokens_N: Tensor | None = None) -> Tensor:
        return self.dictionary.bias_at(tokens_N).detach()

    def with_k(self, k: int) -> "Recoded":
        return Recoded(self.dictionary.with_k(k), self.coder)

    @torch.no_grad()
    def encode_sparse(self, x_ND: Tensor, tokens_N: Tensor | None = None) -> Codes:
        self.check(x_ND)
        parts = x_ND.split(CHUNK)
        tokens = [None] * len(parts) if tokens_N is None else tokens_N.split(CHUNK)
        with torch.autocast(x_ND.device.type, enabled=False):
            return Codes.join([self._chunk(*part) for part in zip(parts, tokens, strict=True)])

    def _chunk(self, x_CD: Tensor, tokens_C: Tensor | None) -> Codes:
        y_CD, k = x_CD.to(self.directions_LD.dtype) - self.bias_at(tokens_C), self.k
        dense_Cr = y_CD.new_zeros(len(x_CD), self.dense)
        if self.adaptive or self.dense:
            own = self.dictionary.encode_sparse(x_CD, tokens_C)
            is_dense_M, rows_M = own.indices_M >= self.rays, own.rows_M
            at_M = rows_M[is_dense_M], own.indices_M[is_dense_M] - self.rays
            dense_Cr[at_M] = own.values_M[is_dense_M].to(dense_Cr)
            y_CD -= dense_Cr @ self.directions_LD[self.rays :]
            if self.adaptive:
                k = rows_M[~is_dense_M].bincount(minlength=len(x_CD)).clamp_max(self.width)
        indices_Ck, values_Ck = SEARCHES[self.coder](y_CD, self.directions_LD[: self.rays], k, self.signed)
        dense_r = torch.arange(self.rays, self.latents, device=x_CD.device)
        indices = torch.cat([indices_Ck, dense_r.expand(len(x_CD), -1)], 1)
        return Codes.of_rows(indices, torch.cat([values_Ck, dense_Cr], 1), self.latents)

    def to_save(self) -> Dictionary:
        """A `Linear`, which gives the same codes. Raises ValueError if there is none."""
        if not self.plain:
            raise ValueError(
                f"a {self.kind} dictionary coded by {self.coder} reads its own encoder; save the dictionary itself"
            )
        same = Linear(self.width, self.latents, self.k, self.coder, self.directions, self.bias, self.signed)
        same.provenance = dict(self.provenance)
        return same


def at_unit_length(directions_LD: Tensor, rays: int) -> Tensor:
    """The same tensor if the first `rays` rows are at unit length already, as those of learned kinds are."""
    norms_R = directions_LD[:rays].norm(dim=1)
    if ((norms_R - 1).abs() < UNIT).all():
        return directions_LD
    return torch.cat([F.normalize(directions_LD[:rays].double(), eps=1e-30).float(), directions_LD[rays:]])
