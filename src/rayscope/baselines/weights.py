"""Singular directions of a weight matrix.

D site width, L directions: min(rows, columns).
"""

import torch
from torch import Tensor

from rayscope.dictionaries import Linear


def svd(matrix: Tensor, width: int, k: int, mean_D: Tensor) -> Linear | None:
    """Singular directions of W in y = x @ W, greatest first, on the side of the site's width;
    None if neither side fits.

    Left ones, along which x is read, if there are `width` rows; otherwise right ones, along which y is written.
    Coder: the k largest |coefficients|; bias the mean.
    """
    if matrix.ndim != 2:
        raise ValueError(f"a weight of shape {tuple(matrix.shape)} has no singular directions; give a matrix")
    rows, columns = matrix.shape
    if width not in (rows, columns):
        return None
    left_RL, _, right_LC = torch.linalg.svd(matrix.detach().double(), full_matrices=False)
    directions_LD = left_RL.T if rows == width else right_LC
    return Linear(width, len(directions_LD), k, "topk", directions_LD, mean_D)
