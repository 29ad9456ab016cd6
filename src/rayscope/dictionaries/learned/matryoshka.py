"""Matryoshka: nested prefixes of the latents, each of which has to reconstruct x on its own.

N vectors, D site width, L latents, G groups, M chosen (vector, latent) pairs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rayscope.dictionaries.learned.autoencoders import AbsTopK, BatchTopK, TopK
from rayscope.dictionaries.learned.base import Learned
from rayscope.dictionaries.sparse.kernels import SparsePattern, sparse_decode


class Nested(Learned):
    """reconstruction = mean over prefixes g of FVU(z[:, :g] W_dec[:g] + b_dec) (2503.17547), z as in the base class.

    groups: the prefixes' sizes, rising to L; by default L/16, L/4, L/2 and L. Latents of the inner groups are in more
    reconstructions, so they learn what is general. `fvu` is that of all latents.
    """

    def __init__(self, *args, groups: Sequence[int] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if groups is None:
            groups = sorted({max(1, self.latents // share) for share in (16, 4, 2, 1)})
        self.groups = [int(group) for group in groups]
        rising = all(small < large for small, large in zip([0, *self.groups], self.groups, strict=False))
        if not (self.groups and rising and self.groups[-1] == self.latents):
            raise ValueError(
                f"groups={self.groups}: prefix sizes must rise from at least 1 to the {self.latents} latents"
            )

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "groups": self.groups}

    def choose(self, centred_ND: Tensor) -> SparsePattern:
        """Each vector's latents in rising order, so that those of a group are adjacent."""
        pattern = super().choose(centred_ND)
        places_M = (pattern.rows_M * self.latents + pattern.indices_M).sort().values
        return SparsePattern.of_positions(places_M, len(centred_ND), self.latents)

    def _residuals(self, goal_ND: Tensor, pattern: SparsePattern, values_M: Tensor) -> list[Tensor]:
        """One k-sparse decode of N * G rows, one per vector and group, then cumulative sums over the groups."""
        N, G = len(goal_ND), len(self.groups)
        ends_G = torch.tensor(self.groups, device=pattern.indices_M.device)
        rows_M = pattern.rows_M * G + torch.searchsorted(ends_G, pattern.indices_M, right=True)
        offsets = F.pad(rows_M.bincount(minlength=N * G).cumsum(0), (1, 0))
        parts_NGD = sparse_decode(
            values_M, self.W_dec_LD, SparsePattern(pattern.indices_M, offsets, self.latents)
        ).view(N, G, -1)
        return [goal_ND - (x_hat_ND + self.b_dec_D) for x_hat_ND in parts_NGD.cumsum(1).unbind(1)]


class MatryoshkaTopK(Nested, TopK):
    """Rays, k per vector."""

    kind = "matryoshka_topk"


class MatryoshkaAbsTopK(Nested, AbsTopK):
    """Signed directions, k per vector."""

    kind = "matryoshka_abstopk"


class MatryoshkaBatchTopK(Nested, BatchTopK):
    """Rays, k per vector on average over a batch; in use, BatchTopK's threshold."""

    kind = "matryoshka_batchtopk"
