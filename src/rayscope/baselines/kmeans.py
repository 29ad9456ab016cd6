"""k-means: one direction for each cluster.

S vectors of a sample, D site width, L clusters.
"""

import torch
from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus
from torch import Tensor

from rayscope.dictionaries import Linear


def clusters(x_SD: Tensor, latents: int, *, seed: int, iterations: int, batch: int = 4096) -> Tensor:
    """(L, D) centroids of scikit-learn's MiniBatchKMeans, as many as vectors, if those are fewer.

    Begun by k-means++ with one draw a centroid, among 3 L vectors: its usual draws would take most of the time.
    """
    latents = min(latents, len(x_SD))
    order = torch.randperm(len(x_SD), generator=torch.Generator().manual_seed(seed))
    first = kmeans_plusplus(x_SD[order[: 3 * latents]].float().numpy(), latents, random_state=seed, n_local_trials=1)[0]
    fit = MiniBatchKMeans(latents, init=first, n_init=1, max_iter=iterations, batch_size=batch, random_state=seed)  # type: ignore[arg-type]
    return torch.from_numpy(fit.fit(x_SD.float().numpy()).cluster_centers_)


def kmeans(x_SD: Tensor, latents: int, *, seed: int = 0, iterations: int = 20) -> Linear:
    """Rays from the mean to each centroid; a code is the one ray, with its length, that comes nearest to the vector.

    x_hat = mean + z w_l, w_l unit, (l, z >= 0) = argmin |x - x_hat|^2: the centroid's direction with a length of each
    vector's own, never farther than the nearest centroid, at log2 L + 8 bits. It is a code of k = 1 and of no other.
    Centroids at the mean, which have no direction, are left out.
    """
    mean_D = x_SD.double().mean(0)
    away_LD = clusters(x_SD, latents, seed=seed, iterations=iterations).double() - mean_D
    norms_L = away_LD.norm(dim=1)
    away_LD = away_LD[norms_L > 1e-6 * norms_L.max()]
    if not len(away_LD):
        raise ValueError(f"the {len(x_SD)} vectors of the sample are all equal; k-means needs some that differ")
    dictionary = Linear(len(mean_D), len(away_LD), 1, "topk", away_LD, mean_D, signed=False)
    dictionary.provenance = {"sample": len(x_SD), "seed": seed, "iterations": iterations}
    return dictionary
