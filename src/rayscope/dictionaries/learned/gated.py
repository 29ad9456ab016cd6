"""Gated: one path says whether a latent fires, another how much (Rajamanoharan et al. 2024, 2404.16014).

N vectors, C vectors of a chunk, D site width, L latents, M chosen (vector, latent) pairs.
"""

import torch
from torch import Tensor, nn

from rayscope.dictionaries.learned.penalised import Penalised
from rayscope.dictionaries.learned.units import Units
from rayscope.dictionaries.learned.vectors import spread
from rayscope.dictionaries.sparse.kernels import SparsePattern, gather_dot, of_latents, sparse_decode
from rayscope.dictionaries.sparse.selection import above


class Gated(Penalised):
    """z = relu(exp(r_mag) dot + b_mag) where gate = dot + b_enc > 0, dot = W_enc (s x - b_dec): tied weights.

    sparsity = coefficient * mean over vectors of sum_l relu(gate_l) / sigma, sigma^2 the batch's mean |x - batch
    mean|^2; gate = sum|x - x_hat(relu(gate))|^2 / sum|x - batch mean|^2, without gradient to the decoder and b_dec.
    This loss is all that moves b_enc towards reconstruction.
    """

    kind = "gated"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.r_mag_L = nn.Parameter(torch.zeros(self.latents))
        self.b_mag_L = nn.Parameter(torch.zeros(self.latents))

    def _start_at(self, threshold: Tensor) -> None:
        super()._start_at(threshold)
        self.b_mag_L.copy_(self.b_enc_L)

    def active_codes(self, products_CL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, places, _ = above(products_CL, self.b_enc_L.detach(), 0.0)
        indices = places % self.latents
        values = (products_CL.flatten()[places] * self.r_mag_L.exp()[indices] + self.b_mag_L[indices]).relu()
        fires = values > 0
        counts_C = (places[fires] // self.latents).bincount(minlength=len(products_CL))
        return counts_C, indices[fires], values[fires]

    def _codes(self, x_ND: Tensor, pattern: SparsePattern) -> tuple[Tensor, Tensor]:
        dot_M = gather_dot(x_ND, self.W_enc_LD, torch.zeros_like(self.b_enc_L), self.centre_D, pattern)
        gate_M = dot_M + of_latents(self.b_enc_L, pattern)
        size_M = dot_M * of_latents(self.r_mag_L, pattern).exp() + of_latents(self.b_mag_L, pattern)
        return size_M.relu() * (gate_M > 0), gate_M

    def penalties(self, x_ND: Tensor, pattern: SparsePattern, pre_M: Tensor, values_M: Tensor) -> dict[str, Tensor]:
        gate_M, whole = pre_M.relu(), spread(x_ND)
        missed_ND = x_ND - (sparse_decode(gate_M, self.W_dec_LD.detach(), pattern) + self.b_dec_D.detach())
        total = gate_M.sum() / (whole / len(x_ND)).sqrt()
        return {
            "sparsity": (self.pressure * total / len(x_ND)).to(x_ND),
            "gate": missed_ND.square().sum() / whole,
        }

    def fold_input(self, units: Units) -> None:
        super().fold_input(units)
        self.b_mag_L /= units.scale
