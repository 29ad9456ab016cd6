"""KSparse: what kinds that choose k latents share, codes refined by a short pursuit.

N vectors, C vectors of a chunk, D site width, L latents, r of them dense, S candidates of a vector.
"""

import copy
from abc import abstractmethod
from typing import Any, Self

import torch
from torch import Tensor

from rayscope.dictionaries.base import Codes, whole
from rayscope.dictionaries.learned.base import Learned
from rayscope.dictionaries.learned.vectors import full_precision
from rayscope.dictionaries.sparse.refine import refine_codes
from rayscope.dictionaries.sparse.selection import largest_in_rows, products

CANDIDATES = 2  # for each code


class KSparse(Learned):
    """refine: None, codes are the chosen pre-activations; a number, a pursuit among that many times k candidates
    replaces codes in use (see `refine_codes`): those with the largest pre (signed: |pre|).

    A vector has at most as many codes as before, and |x - x_hat| is never above that of the codes as they were. Losses
    do not change: refined codes are least squares, so the residual is orthogonal to their rows, and an encoder that
    learned through them would have no gradient at all.
    """

    def __init__(self, *args, refine: int | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.refine = refine
        if refine is not None:
            self._check_refine(refine)

    def _check_refine(self, refine: int) -> None:
        whole(refine=refine)
        if refine < 1:
            raise ValueError(
                f"refine={refine} candidates for each code must be at least 1 (null: codes are not refined)"
            )
        if self.whiten:
            raise ValueError(f"refine={refine} with whiten=True: refined codes are least squares in x; choose one")

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "refine": self.refine}

    def refined(self, refine: int = CANDIDATES) -> Self:
        """The same dictionary with refined codes. Raises ValueError if it is whitened."""
        self._check_refine(refine)
        other = copy.deepcopy(self)
        other.refine = refine
        return other.eval()

    @abstractmethod
    def own_counts(self, products_CL: Tensor) -> Tensor:
        """(C): how many latents each vector may use, the dense ones apart."""

    @torch.no_grad()
    def encode_sparse(self, x_ND: Tensor, tokens_N: Tensor | None = None) -> Codes:
        if self.refine is None or len(x_ND) == 0:
            return super().encode_sparse(x_ND, tokens_N)
        self.check(x_ND)
        if self.output_width != self.width:
            raise ValueError(f"a {self.kind} dictionary that writes another site has no refined codes; set refine=null")
        with full_precision(x_ND):
            y_ND = x_ND.to(self.b_dec_D.dtype) - self.bias_at(tokens_N)
            chunks = products(self._centred(x_ND, tokens_N), self.W_enc_LD, exact=True)
            return Codes.join([self._refined(y_ND[start : start + len(chunk)], chunk) for start, chunk in chunks])

    def _refined(self, y_CD: Tensor, products_CL: Tensor) -> Codes:
        """Dense codes first; what they leave of y is coded by the others."""
        rays, b_enc_L, W_LD = self.latents - self.dense, self.b_enc_L.detach(), self.directions.detach()
        own_C = self.own_counts(products_CL).clamp_max(self.width)  # more rows than D are dependent
        size = max(1, min(self.refine * int(own_C.max()), rays))  # type: ignore[operator]
        scale = self.units.outer.scale
        dense_Cr = (products_CL[:, rays:] + b_enc_L[rays:]) / scale
        if self.dense:
            y_CD = y_CD - dense_Cr @ W_LD[rays:]
        candidates_CS = largest_in_rows(products_CL[:, :rays].contiguous(), b_enc_L[:rays], size, self.signed)
        pre_CS = (products_CL.gather(1, candidates_CS) + b_enc_L[candidates_CS]) / scale
        indices, values = refine_codes(y_CD, W_LD[:rays], candidates_CS, pre_CS, own_C, self.refine, self.signed)  # type: ignore[arg-type]
        dense_r = torch.arange(rays, self.latents, device=y_CD.device)
        indices = torch.cat([indices, dense_r.expand(len(y_CD), -1)], 1)
        return Codes.of_rows(indices, torch.cat([values, dense_Cr], 1), self.latents)
