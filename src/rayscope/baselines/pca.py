"""Principal directions from a streamed covariance.

D site width.
"""

import torch
from torch import Tensor

from rayscope.dictionaries import Linear, Transform
from rayscope.streams.statistics import Moments


def pca(moments: Moments, k: int, coder: str) -> Linear:
    """All D principal directions, greatest variance first, each with its largest entry positive; bias the mean.

    coder: "prefix" (the first k) or "topk" (the k largest |coefficients| of each vector).
    """
    _, directions_DD = components(moments)
    width = len(directions_DD)
    return Linear(width, width, k, coder, directions_DD, moments.mean_D)


def transform(moments: Moments) -> Transform:
    """The same as a transform code, with one bit; see `Transform.at_bits` for others."""
    variances_D, directions_DD = components(moments)
    width = len(directions_DD)
    return Transform(width, width, 1, directions_DD, moments.mean_D, variances_D)


def components(moments: Moments) -> tuple[Tensor, Tensor]:
    """(variances_D, directions_DD), greatest variance first."""
    variances_D, columns_DD = torch.linalg.eigh(moments.covariance_DD)
    directions_DD = columns_DD.T.flip(0)
    largest_D1 = directions_DD.gather(1, directions_DD.abs().argmax(1, keepdim=True))
    return variances_D.flip(0), directions_DD * largest_D1.sign()
