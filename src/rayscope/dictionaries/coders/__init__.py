"""Codes for given directions: the largest products, matching pursuits, FISTA, and least squares on a support.

N vectors, D site width, L directions.
"""

from collections.abc import Callable

from torch import Tensor

from rayscope.dictionaries.coders.fista import fista
from rayscope.dictionaries.coders.omp import omp
from rayscope.dictionaries.coders.pursuit import pursuit
from rayscope.dictionaries.coders.topk import topk

Search = Callable[[Tensor, Tensor, int | Tensor, bool], tuple[Tensor, Tensor]]
SEARCHES: dict[str, Search] = {  # (x_ND, W_LD, k, signed) -> (indices, values), both (N, k)
    "topk": topk,
    "omp": omp,
    "pursuit": pursuit,
    "fista": fista,
}
