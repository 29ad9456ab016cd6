"""Principal directions from a streamed covariance.

D site width.
"""

import torch

from rayscope.dictionaries import Linear
from rayscope.streams.statistics import Moments


def pca(moments: Moments, k: int, coder: str) -> Linear:
    """All D principal directions, greatest variance first, each with its largest entry positive; bias the mean.

    coder: "prefix" (the first k) or "topk" (the k largest |coefficients| of each vector).
    """
    _, columns_DD = torch.linalg.eigh(moments.covariance_DD)
    directions_DD = columns_DD.T.flip(0)
    largest_D1 = directions_DD.gather(1, directions_DD.abs().argmax(1, keepdim=True))
    width = len(directions_DD)
    return Linear(width, width, k, coder, directions_DD * largest_D1.sign(), moments.mean_D)
