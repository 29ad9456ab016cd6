"""The k largest products with the directions.

N vectors, C vectors of a chunk, D site width, L directions.
"""

import torch
from torch import Tensor

from rayscope.dictionaries.coders.support import in_chunks, within


@torch.no_grad()
def topk(x_ND: Tensor, W_LD: Tensor, k: int | Tensor, signed: bool = True) -> tuple[Tensor, Tensor]:
    """(indices, values), both (N, k): z_l = x . w_l for the k of largest |x . w_l| (rays: x . w_l > 0), largest first.

    k: of all vectors, or (N) of each; what is beyond it is 0. Least squares if the rows of W are orthonormal.
    """

    def chunk(x_CD: Tensor, k_C: Tensor) -> tuple[Tensor, Tensor]:
        products_CL = x_CD @ W_LD.T
        if signed:
            indices_Ck = products_CL.abs().topk(int(k_C[0])).indices
            values_Ck = products_CL.gather(1, indices_Ck)
        else:
            values_Ck, indices_Ck = products_CL.relu_().topk(int(k_C[0]))
        return indices_Ck, values_Ck * within(k_C, values_Ck)

    return in_chunks(chunk, x_ND, k, len(W_LD))
