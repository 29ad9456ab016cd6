"""One direction for each frequent token: the mean activation where the token is read, from the mean of all.

N vectors, D site width, V vocabulary, T tokens kept.
"""

import torch
from torch import Tensor

from rayscope.dictionaries import Linear


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


def token_means(sums: TokenSums, latents: int, k: int, min_count: int = 8) -> Linear:
    """The `latents` most frequent tokens that occur at least min_count times (fewer where fewer do), coded by OMP.

    Latent l is the token provenance["token_ids"][l], most frequent first; bias is the mean of all vectors.
    """
    ranked_V = sums.counts_V.sort(descending=True, stable=True).indices
    frequent_T = ranked_V[sums.counts_V[ranked_V] >= max(min_count, 1)][:latents]
    if len(frequent_T) < k:
        raise ValueError(
            f"token_means has {len(frequent_T)} latents, below k={k}: {latents} asked, tokens seen {min_count} times "
            "or more counted; give more text, more latents or a lower min_count"
        )
    means_TD = sums.sums_VD[frequent_T] / sums.counts_V[frequent_T][:, None]
    dictionary = Linear(means_TD.shape[1], len(frequent_T), k, "omp", means_TD - sums.mean_D, sums.mean_D)
    dictionary.provenance = {"token_ids": frequent_T.tolist()}
    return dictionary
