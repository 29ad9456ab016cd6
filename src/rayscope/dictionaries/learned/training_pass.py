"""TrainingPass: one batch through a dictionary that learns.

N vectors, D site width, M chosen (vector, latent) pairs.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from rayscope.dictionaries.sparse.kernels import SparsePattern


@dataclass
class TrainingPass:
    """Its losses, and what `after_step` adds to the running state.

    losses: by name; their sum is minimised. values_M: of the pattern's pairs, without gradient. residual_ND: in the
    units that it learns in. fvu: the batch's own, of x. autoencodes: whether what is reconstructed is what was read.
    metrics: others by name.
    """

    losses: dict[str, Tensor]
    pattern: SparsePattern
    values_M: Tensor
    residual_ND: Tensor
    tokens_N: Tensor | None
    fvu: Tensor
    autoencodes: bool = True
    metrics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def loss(self) -> Tensor:
        return torch.stack(list(self.losses.values())).sum()

    @property
    def vectors(self) -> int:
        return len(self.residual_ND)

    @cached_property
    def fires_M(self) -> Tensor:
        return self.values_M != 0

    @property
    def fired_M(self) -> Tensor:
        """The latent of each non-zero code."""
        return self.pattern.indices_M[self.fires_M]

    @property
    def l0(self) -> Tensor:
        return self.fires_M.sum() / self.vectors
