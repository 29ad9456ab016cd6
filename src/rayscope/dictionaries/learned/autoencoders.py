"""TopK and BatchTopK (rays) and AbsTopK (signed directions): how k of the latents are chosen.

N vectors, C vectors of a chunk, D site width, L latents, M chosen (vector, latent) pairs.
"""

import torch
from torch import Tensor

from rayscope.dictionaries.learned.k_sparse import KSparse
from rayscope.dictionaries.learned.training_pass import TrainingPass
from rayscope.dictionaries.learned.units import Units
from rayscope.dictionaries.learned.vectors import full_precision
from rayscope.dictionaries.sparse.kernels import SparsePattern
from rayscope.dictionaries.sparse.selection import (
    above,
    choose_by_batch,
    choose_by_vector,
    largest_in_rows,
    threshold_for,
)


class ByVector(KSparse):
    """The k latents of each vector with the largest pre (rays) or |pre| (signed)."""

    def choose(self, centred_ND: Tensor) -> SparsePattern:
        return choose_by_vector(centred_ND, self.W_enc_LD, self.b_enc_L, self.k, self.signed)

    def active_codes(self, products_CL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        indices_Ck = largest_in_rows(products_CL, self.b_enc_L.detach(), self.k, self.signed)
        values_Ck = products_CL.gather(1, indices_Ck) + self.b_enc_L[indices_Ck]
        kept_Ck = values_Ck != 0 if self.signed else values_Ck > 0
        return kept_Ck.sum(1), indices_Ck[kept_Ck], values_Ck[kept_Ck]

    def own_counts(self, products_CL: Tensor) -> Tensor:
        return torch.full((len(products_CL),), self.k, device=products_CL.device)


class TopK(ByVector):
    """z = relu(the k largest pre), all else 0 (Gao et al. 2024, 2406.04093)."""

    kind = "topk"
    signed = False


class AbsTopK(ByVector):
    """z = the k pre of largest |pre|, with their signs (2510.00404)."""

    kind = "abstopk"
    signed = True


class BatchTopK(KSparse):
    """Training: the N * k largest relu(pre) of a batch of N (2412.06410). In use: z = relu(pre) where pre > threshold.

    threshold: while training, the bias-corrected mean over steps (decay .95) of the smallest value chosen (a choice
    made in bfloat16 leaves some 4% more latents above it than k); `calibrate` sets it exactly, from data.
    """

    kind = "batchtopk"
    signed = False
    adaptive = True
    training_only = (*KSparse.training_only, "threshold_mean", "threshold_steps")
    decay = 0.95
    threshold: Tensor
    threshold_mean: Tensor
    threshold_steps: Tensor

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("threshold_mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("threshold_steps", torch.zeros((), dtype=torch.int64))

    def choose(self, centred_ND: Tensor) -> SparsePattern:
        count = len(centred_ND) * self.k
        return choose_by_batch(centred_ND, self.W_enc_LD, self.b_enc_L, count, self._hint())

    def _hint(self) -> float:
        return 0.8 * self.threshold.item()

    def active_codes(self, products_CL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        floor = max(self.threshold.item(), 0.0)
        counts_C, places, values = above(products_CL, self.b_enc_L.detach(), floor)
        return counts_C, places % self.latents, values

    def own_counts(self, products_CL: Tensor) -> Tensor:
        return self.active_codes(products_CL)[0]

    @torch.no_grad()
    def after_step(self, passed: TrainingPass) -> None:
        super().after_step(passed)
        positive = passed.values_M[passed.values_M > 0]
        if len(positive):
            self.threshold_steps += 1
            self.threshold_mean.lerp_(positive.min().double(), 1 - self.decay)
            self.threshold.copy_(self.threshold_mean / (1 - self.decay**self.threshold_steps))

    @torch.no_grad()
    def calibrate(self, x_ND: Tensor, tokens_N: Tensor | None = None) -> None:
        """Sets the threshold half-way between the N * k-th largest pre of x and the next: the mean L0 on x is k."""
        self.check(x_ND)
        count = len(x_ND) * self.k
        with full_precision(x_ND):
            threshold = threshold_for(self._centred(x_ND, tokens_N), self.W_enc_LD, self.b_enc_L, count, self._hint())
        self.threshold.copy_(threshold)

    def fold_input(self, units: Units) -> None:
        super().fold_input(units)
        self.threshold /= units.scale
