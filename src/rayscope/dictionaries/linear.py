"""Linear: given directions and a coder. What every baseline returns.

N vectors, D site width, L latents.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rayscope.dictionaries.base import Codes, Dictionary
from rayscope.dictionaries.omp import omp

CODERS = ("prefix", "topk", "omp")


class Linear(Dictionary):
    """x_hat = z @ directions + bias, rows of directions made unit, y = x - bias coded by one of

    prefix  z_l = y . w_l for the first k directions (their order is a ranking: PCA);
    topk    z_l = y . w_l for the k of largest |y . w_l| (least squares where the directions are orthonormal);
    omp     k directions by orthogonal matching pursuit (any directions).

    Without `directions` they are zeros, to be filled by load.
    """

    kind = "linear"
    signed = True
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
    ):
        super().__init__(width, latents, k)
        if coder not in CODERS:
            raise ValueError(f"coder={coder!r}; it is one of {', '.join(CODERS)}")
        self.coder = coder
        self.fixed_support = coder == "prefix"
        directions_LD = torch.zeros(latents, width)
        if directions is not None:
            directions_LD = _unit_rows(directions, latents, width)
        if bias is not None and (bias.shape != (width,) or not bias.isfinite().all()):
            raise ValueError(f"bias of shape {tuple(bias.shape)}; it must be {width} finite numbers")
        self.register_buffer("directions_LD", directions_LD)
        self.register_buffer("bias_D", torch.zeros(width) if bias is None else bias.detach().to(directions_LD))

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "coder": self.coder}

    @property
    def directions(self) -> Tensor:
        return self.directions_LD

    @property
    def bias(self) -> Tensor:
        return self.bias_D

    @torch.no_grad()
    def encode_sparse(self, x_ND: Tensor) -> Codes:
        self.check(x_ND)
        with torch.autocast(x_ND.device.type, enabled=False):
            centred_ND = x_ND.to(self.bias_D.dtype) - self.bias_D
            if self.coder == "omp":
                return Codes.of_rows(*omp(centred_ND, self.directions_LD, self.k), self.latents)
            if self.coder == "prefix":
                values_Nk = centred_ND @ self.directions_LD[: self.k].T
                return Codes.of_rows(
                    torch.arange(self.k, device=x_ND.device).expand(len(x_ND), -1), values_Nk, self.latents
                )
            parts = [self._largest(chunk_CD) for chunk_CD in centred_ND.split(1024)]
            return Codes.of_rows(
                torch.cat([indices for indices, _ in parts]), torch.cat([values for _, values in parts]), self.latents
            )

    def _largest(self, centred_CD: Tensor) -> tuple[Tensor, Tensor]:
        projections_CL = centred_CD @ self.directions_LD.T
        indices_Ck = projections_CL.abs().topk(self.k).indices
        return indices_Ck, projections_CL.gather(1, indices_Ck)


def _unit_rows(directions: Tensor, latents: int, width: int) -> Tensor:
    if directions.shape != (latents, width):
        raise ValueError(f"directions of shape {tuple(directions.shape)}; latents and width say {(latents, width)}")
    norms_L = directions.detach().double().norm(dim=1)
    bad = int((~norms_L.isfinite() | (norms_L == 0)).sum())
    if bad:
        raise ValueError(f"{bad} of {latents} directions are zero or not finite; every one needs a direction")
    return F.normalize(directions.detach().double(), eps=0).to(torch.float32).contiguous()
