"""Singular directions of a weight matrix.

D site width, L directions: min(rows, columns).
"""

import torch
from torch import Tensor

from rayscope.dictionaries import Linear

SIDES = ("read", "write")


def svd(matrix: Tensor, width: int, k: int, mean_D: Tensor, side: str = "read") -> Linear | None:
    """Singular directions of W in y = x @ W, greatest first, on the side of the site's width; None where none fits.

    Left ones ("read": what x is read along) where the rows number `width`, right ones ("write": what y is written
    along) where the columns do; `side` decides where both do. Coder: the k largest |coefficients|; bias the mean.
    """
    if side not in SIDES:
        raise ValueError(f"side={side!r}; it is one of {', '.join(SIDES)}")
    if matrix.ndim != 2:
        raise ValueError(f"a weight of shape {tuple(matrix.shape)} has no singular directions; give a matrix")
    rows, columns = matrix.shape
    if width not in (rows, columns):
        return None
    left_RL, _, right_LC = torch.linalg.svd(matrix.detach().double(), full_matrices=False)
    read = side == "read" if rows == columns else rows == width
    directions_LD = left_RL.T if read else right_LC
    return Linear(width, len(directions_LD), k, "topk", directions_LD, mean_D)
