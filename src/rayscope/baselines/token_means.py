"""One direction for each frequent token: the mean activation where the token is read, from the mean of all.

D site width, V vocabulary, T tokens kept.
"""

from rayscope.dictionaries import Linear
from rayscope.streams.statistics import TokenSums


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
