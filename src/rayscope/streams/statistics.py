"""What is kept of a stream without keeping its vectors: moments, sums per token, a uniform sample.

N vectors, S vectors of the sample, D site width, V vocabulary.
"""

import numpy as np
import torch
from torch import Tensor


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


class TokenSums:
    """Counts and sums of activations by token, in float64, over a stream of batches."""

    def __init__(self, vocabulary: int, width: int):
        self.counts_V = torch.zeros(vocabulary, dtype=torch.int64)
        self.sums_VD = torch.zeros(vocabulary, width, dtype=torch.float64)

    @torch.no_grad()
    def update(self, tokens_N: Tensor, x_ND: Tensor) -> None:
        self.counts_V += tokens_N.bincount(minlength=len(self.counts_V)).to(self.counts_V.device)
        self.sums_VD.index_add_(0, tokens_N.to(self.counts_V.device), x_ND.to(self.sums_VD))

    @property
    def mean_D(self) -> Tensor:
        """Of all vectors, whatever their token."""
        return self.sums_VD.sum(0) / self.counts_V.sum().clamp_min(1)


class Sample:
    """`size` vectors of a stream in float32, every one equally likely (Vitter's algorithm R, 1985);
    all, while there are fewer.

    A function of the seed and the stream, not of how it is cut into batches; two of one seed keep the same positions.
    """

    def __init__(self, size: int, seed: int = 0):
        if size < 1:
            raise ValueError(f"a sample of {size} vectors; it needs at least 1")
        self.size, self.seen = size, 0
        self._random = np.random.default_rng(seed)
        self._kept_SD: Tensor | None = None

    @torch.no_grad()
    def update(self, x_ND: Tensor) -> None:
        if self._kept_SD is None:
            self._kept_SD = torch.empty(self.size, x_ND.shape[1])
        order_N = self.seen + np.arange(len(x_ND))
        places_N = np.floor(self._random.random(len(x_ND)) * (order_N + 1)).astype(np.int64)
        places_N = np.where(order_N < self.size, order_N, places_N)  # the first fill it
        latest = {
            int(places_N[n]): n for n in np.flatnonzero(places_N < self.size).tolist()
        }  # the last to a place stays
        if latest:
            self._kept_SD[list(latest)] = x_ND[list(latest.values())].float().cpu()
        self.seen += len(x_ND)

    @property
    def vectors_SD(self) -> Tensor:
        if self._kept_SD is None:
            raise ValueError("no vector was given to update(); a sample needs at least one")
        return self._kept_SD[: self.seen]
