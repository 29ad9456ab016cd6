"""Linear: given directions and a coder. What every baseline returns.

N vectors, D site width, L latents.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rayscope.dictionaries.base import Codes, Dictionary
from rayscope.dictionaries.coders import SEARCHES

CODERS = ("prefix", *SEARCHES)


class Linear(Dictionary):
    """x_hat = z @ directions + bias, rows of directions at unit length, y = x - bias coded by one of

    prefix  z_l = y . w_l for the first k directions (their order is a ranking: PCA);
    topk    z_l = y . w_l for the k of largest |y . w_l| (least squares if the directions are orthonormal);
    omp     k directions by orthogonal matching pursuit (any directions);
    pursuit the same with one gradient step instead of least squares;
    fista   k directions by a lasso, then least squares: takes more than ten times as long as omp.

    signed=False makes the directions rays: latents are chosen by y . w_l instead of |y . w_l|, codes below 0 are 0, and
    least squares are over z >= 0. Without `directions` they are zeros, to be filled by load.
    """

    kind = "linear"
    directions_LD: Tensor
    bias_D: Tensor

    def __init__(
        self,
        width: int,
        latents: int,
        k: int,
        coder: str,
        directions: Tensor | None = None,
        bias: Tensor | None = None,
        signed: bool = True,
    ):
        super().__init__(width, latents, k)
        if coder not in CODERS:
            raise ValueError(f"coder={coder!r}; it is one of {', '.join(CODERS)}")
        self.coder, self.signed = coder, signed
        self.fixed_support = coder == "prefix"
        directions_LD = torch.zeros(latents, width)
        if directions is not None:
            directions_LD = _unit_rows(directions, latents, width)
        if bias is not None and (bias.shape != (width,) or not bias.isfinite().all()):
            raise ValueError(f"bias of shape {tuple(bias.shape)}; it must be {width} finite numbers")
        self.register_buffer("directions_LD", directions_LD)
        self.register_buffer("bias_D", torch.zeros(width) if bias is None else bias.detach().to(directions_LD))

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "coder": self.coder, "signed": self.signed}

    @property
    def directions(self) -> Tensor:
        return self.directions_LD

    @property
    def bias(self) -> Tensor:
        return self.bias_D

    @torch.no_grad()
    def encode_sparse(self, x_ND: Tensor, tokens_N: Tensor | None = None) -> Codes:
        self.check(x_ND)
        with torch.autocast(x_ND.device.type, enabled=False):
            centred_ND = x_ND.to(self.bias_D.dtype) - self.bias_D
            if search := SEARCHES.get(self.coder):
                return Codes.of_rows(*search(centred_ND, self.directions_LD, self.k, self.signed), self.latents)
            values_Nk = centred_ND @ self.directions_LD[: self.k].T
            values_Nk = values_Nk if self.signed else values_Nk.relu_()
            first_Nk = torch.arange(self.k, device=x_ND.device).expand(len(x_ND), -1)
            return Codes.of_rows(first_Nk, values_Nk, self.latents)


def _unit_rows(directions: Tensor, latents: int, width: int) -> Tensor:
    if directions.shape != (latents, width):
        raise ValueError(f"directions of shape {tuple(directions.shape)}; latents and width say {(latents, width)}")
    norms_L = directions.detach().double().norm(dim=1)
    bad = int((~norms_L.isfinite() | (norms_L == 0)).sum())
    if bad:
        raise ValueError(f"{bad} of {latents} directions are zero or not finite")
    return F.normalize(directions.detach().double(), eps=0).to(torch.float32).contiguous()
