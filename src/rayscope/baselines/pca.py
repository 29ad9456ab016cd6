"""Principal directions from a streamed covariance.

N vectors, D site width.
"""

import torch
from torch import Tensor

from rayscope.dictionaries import Linear


class Moments:
    """Mean and covariance of a stream of vectors in float64, about a fixed point near the mean (no cancellation)."""

    def __init__(self):
        self.count = 0

    @torch.no_grad()
    def update(self, x_ND: Tensor) -> None:
        x_ND = x_ND.double()
        if self.count == 0:
            self.origin_D = x_ND.mean(0)
            self.sum_D = torch.zeros_like(self.origin_D)
            self.product_DD = self.sum_D.new_zeros(len(self.sum_D), len(self.sum_D))
        x_ND = x_ND - self.origin_D
        self.count += len(x_ND)
        self.sum_D += x_ND.sum(0)
        self.product_DD.addmm_(x_ND.T, x_ND)

    @property
    def mean_D(self) -> Tensor:
        self._check()
        return self.origin_D + self.sum_D / self.count

    @property
    def covariance_DD(self) -> Tensor:
        """E[(x - mean)(x - mean)^T], over count."""
        self._check()
        shift_D = self.sum_D / self.count
        return self.product_DD / self.count - torch.outer(shift_D, shift_D)

    def _check(self) -> None:
        if self.count == 0:
            raise ValueError("no vector was given to update(); moments need at least one")


def pca(moments: Moments, k: int, coder: str) -> Linear:
    """All D principal directions, greatest variance first, each with its largest entry positive; bias the mean.

    coder: "prefix" (the first k) or "topk" (the k largest |coefficients| of each vector).
    """
    _, columns_DD = torch.linalg.eigh(moments.covariance_DD)
    directions_DD = columns_DD.T.flip(0)
    largest_D1 = directions_DD.gather(1, directions_DD.abs().argmax(1, keepdim=True))
    width = len(directions_DD)
    return Linear(width, width, k, coder, directions_DD * largest_D1.sign(), moments.mean_D)
