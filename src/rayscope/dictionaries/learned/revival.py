"""Revival: a latent that was silent for the dead window starts again, from what the dictionary leaves unexplained.

N vectors, D site width, L latents, A latents that are due.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayscope.dictionaries.learned.firing import Firing

LENGTH = 0.5  # of a revived row of W_enc, in mean lengths of live ones: at 1 it wins vectors that others code better


class Silent(Protocol):
    """What is asked of a learned dictionary."""

    decoder: str
    firing: Firing
    W_enc_LD: nn.Parameter
    W_dec_LD: nn.Parameter

    def parameters(self) -> Iterator[nn.Parameter]: ...


@torch.no_grad()
def revive(dictionary: Silent, due_L: Tensor, residual_ND: Tensor) -> None:
    """Each latent that is due gets the residual of a vector as its row of W_dec, with unit length, and the same
    direction as its row of W_enc, half as long as live rows are on average. Its biases, and thresholds, become the
    median of the live latents'.

    The vectors are spread evenly over the batch's sum of |residual|^2, no two latents get the same, and nothing is
    drawn: batches are shuffled. A row of W_dec that is frozen, or near a frozen one, stays, and W_enc follows it.
    """
    live_L, places_A = ~dictionary.firing.dead_L, spread_evenly(residual_ND.square().sum(1), int(due_L.sum()))
    if not live_L.any() or not len(places_A) or not dictionary.W_enc_LD.requires_grad:
        return
    due_A = due_L.nonzero()[: len(places_A), 0]
    if dictionary.decoder == "learned":
        dictionary.W_dec_LD[due_A] = F.normalize(residual_ND[places_A]).to(dictionary.W_dec_LD.dtype)
    length = dictionary.W_enc_LD[live_L].norm(dim=1).mean()
    dictionary.W_enc_LD[due_A] = LENGTH * length * dictionary.W_dec_LD[due_A]
    for of_latents in dictionary.parameters():
        if of_latents.shape == due_L.shape:
            of_latents[due_A] = of_latents[live_L].median()


def spread_evenly(weights_N: Tensor, count: int) -> Tensor:
    """Places at the middles of `count` equal parts of the weights' sum; each once, so there may be fewer."""
    sums_N = weights_N.double().cumsum(0)
    middles = (torch.arange(count, device=sums_N.device, dtype=torch.float64) + 0.5) / max(1, count) * sums_N[-1]
    places = torch.searchsorted(sums_N, middles).clamp(max=len(sums_N) - 1).unique()
    return places[weights_N[places] > 0]
