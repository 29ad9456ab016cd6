"""A uniform sample of a stream of vectors: what is fitted by several passes over the same vectors.

N vectors, S vectors of the sample, D site width.
"""

import numpy as np
import torch
from torch import Tensor


class Sample:
    """`size` vectors of a stream in float32, every one equally likely (Vitter's algorithm R, 1985); all, while there are fewer.

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
