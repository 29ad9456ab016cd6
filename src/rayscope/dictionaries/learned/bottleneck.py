"""BottleneckTopK: TopK rays alongside a few latents that are always active and have a sign.

N vectors, C vectors of a chunk, D site width, L latents, r = rank of them dense, M chosen (vector, latent) pairs.
"""

from typing import Any

import torch
from torch import Tensor

from rayscope.dictionaries.base import whole
from rayscope.dictionaries.learned.autoencoders import TopK
from rayscope.dictionaries.sparse.kernels import SparsePattern, gather_dot
from rayscope.dictionaries.sparse.selection import choose_by_vector, largest_in_rows


class BottleneckTopK(TopK):
    """z = (relu(the k largest pre of the first L - r latents), pre of the last r): x_hat = rays + rank r (2606.14040).

    What is active on all vectors goes through the last r latents, so rays need not represent it. Their directions have
    unit length, as rays do, and start as the r leading principal directions of the sample.
    """

    kind = "bottleneck_topk"

    def __init__(self, width: int, latents: int, k: int, rank: int = 24, **kwargs):
        super().__init__(width, latents, k, **kwargs)
        whole(rank=rank)
        if not 1 <= rank <= width:
            raise ValueError(f"rank={rank} must be between 1 and the width {width}")
        if k > latents - rank:
            raise ValueError(
                f"k={k} exceeds the {latents - rank} rays that {latents} latents leave with rank={rank}; "
                "lower k or rank, or raise latents"
            )
        self.dense = rank

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "rank": self.dense}

    @property
    def rays(self) -> int:
        return self.latents - self.dense

    def _start(self, centred_ND: Tensor, tokens_N: Tensor | None, run_tokens: int) -> None:
        centred_ND = centred_ND.double()
        leading_rD = torch.linalg.eigh(centred_ND.T @ centred_ND).eigenvectors.T.flip(0)[: self.dense]
        for W_LD in (self.W_enc_LD, self.W_dec_LD, self.initial_LD):
            if W_LD is not None:
                W_LD[self.rays :] = leading_rD.to(W_LD.dtype)

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        super().load_weights(weights)
        if self.initial_LD is not None:  # the dense rows were not drawn: they stay near where they are
            self.initial_LD[self.rays :] = self.W_dec_LD[self.rays :]

    def choose(self, centred_ND: Tensor) -> SparsePattern:
        rays, N = self.rays, len(centred_ND)
        pattern = choose_by_vector(centred_ND, self.W_enc_LD[:rays], self.b_enc_L[:rays], self.k, self.signed)
        dense_Nr = torch.arange(rays, self.latents, device=centred_ND.device).expand(N, -1)
        return SparsePattern.of_rows(torch.cat([pattern.indices_M.view(N, self.k), dense_Nr], 1), self.latents)

    def _codes(self, x_ND: Tensor, pattern: SparsePattern) -> tuple[Tensor, Tensor]:
        pre_M = gather_dot(x_ND, self.W_enc_LD, self.b_enc_L, self.centre_D, pattern)
        return self._activation(pre_M, pattern.indices_M), pre_M

    def _activation(self, pre: Tensor, indices: Tensor) -> Tensor:
        return torch.where(indices < self.rays, pre.relu(), pre)

    def active_codes(self, products_CL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rays, b_enc_L = self.rays, self.b_enc_L.detach()
        rays_Ck = largest_in_rows(products_CL[:, :rays].contiguous(), b_enc_L[:rays], self.k, self.signed)
        dense_Cr = torch.arange(rays, self.latents, device=products_CL.device).expand(len(products_CL), -1)
        indices = torch.cat([rays_Ck, dense_Cr], 1)
        values = self._activation(products_CL.gather(1, indices) + b_enc_L[indices], indices)
        return (values != 0).sum(1), indices[values != 0], values[values != 0]
