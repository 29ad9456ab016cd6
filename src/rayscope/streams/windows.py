"""Windows: whole rows of a text with their activations, and of each site the vectors that are measured there.

R rows, C context, N vectors, D site width.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from rayscope.model.sites import Site
from rayscope.streams.positions import coded, first
from rayscope.streams.stream import Vectors
from rayscope.text import Rows


@dataclass(frozen=True)
class Window:
    """Some whole rows in the order of the text.
    special: ids of the tokens that are not coded (see `positions.coded`).
    """

    tokens_RC: Tensor
    documents_RC: Tensor
    activations: dict[str, Tensor]  # {site.key: x_RCD}
    special: tuple[int, ...] = ()

    @cached_property
    def coded_N(self) -> Tensor:
        """[R C]: which positions are coded, row after row. All other N are of those alone."""
        return coded(self.tokens_RC, self.special).flatten()

    def at(self, site: Site) -> Vectors:
        """What is coded at a site, in the order of the text."""
        labels = (each.flatten()[self.coded_N] for each in (self.tokens_RC, self.documents_RC, first(self.tokens_RC)))
        x_ND = self._coded(site)
        return Vectors(x_ND, x_ND if site.output == site else self._coded(site.output), *labels)

    def _coded(self, site: Site) -> Tensor:
        x_ND = self.activations[site.key].flatten(0, 1)
        return x_ND[self.coded_N.to(x_ND.device)]

    def in_rows(self, values_NU: Tensor, others_RCU: Tensor) -> Tensor:
        """[R, C, U]: the others, with the values in place of what is coded."""
        rows_RCU = others_RCU.clone(memory_format=torch.contiguous_format)
        coded_N = self.coded_N.to(rows_RCU.device)
        rows_RCU.view(-1, rows_RCU.shape[-1])[coded_N] = values_NU.to(rows_RCU.dtype)
        return rows_RCU


def read_rows(rows: Rows, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
    """(tokens_RC, documents_RC) of the chosen rows."""
    tokens_RC, documents_RC = (torch.from_numpy(of[chosen].astype(np.int64)) for of in (rows.tokens, rows.documents))
    return tokens_RC, documents_RC
