"""L1: rays under a penalty on the sum of their codes, or of a power of them.

N vectors, D site width, L latents, M chosen (vector, latent) pairs.
"""

from typing import Any

from torch import Tensor

from rayscope.dictionaries.learned.penalised import Penalised
from rayscope.dictionaries.learned.vectors import spread
from rayscope.dictionaries.sparse.kernels import SparsePattern


class L1(Penalised):
    """z = relu(pre); sparsity = coefficient * mean over vectors of sum_l z_l / sigma (2309.08600), |w_l| being 1.

    sigma^2 is the batch's mean |x - batch mean|^2, so the coefficient does not depend on scale and width. p_end < 1
    anneals (2408.00113): z / sigma becomes (z / sigma + .01)^p - .01^p, p falling linearly from 1 to p_end over the
    run. The sum is rescaled, without gradient, to its value at p = 1: p moves the penalty from large codes to small
    ones and does not change its size.
    """

    kind = "l1"
    least = 0.01  # keeps the slope at z = 0 finite

    def __init__(self, *args, p_end: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        if not 0 < p_end <= 1:
            raise ValueError(f"p_end={p_end} must be above 0 and at most 1 (plain L1)")
        self.p_end = p_end

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "p_end": self.p_end}

    def penalties(self, x_ND: Tensor, pattern: SparsePattern, pre_M: Tensor, values_M: Tensor) -> dict[str, Tensor]:
        size_M = values_M / (spread(x_ND) / len(x_ND)).sqrt()
        total = size_M.sum()
        if self.p_end < 1:
            p = 1 - (1 - self.p_end) * self.progress
            power = ((size_M + self.least) ** p - self.least**p).sum()
            total = power * (total / power).nan_to_num(1.0).detach()  # 0 / 0 without any code
        return {"sparsity": (self.pressure * total / len(x_ND)).to(x_ND)}
