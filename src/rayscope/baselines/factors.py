"""Non-negative factorisations: x is a sum of rows with weights that are never negative.

S vectors of a sample, D site width, L rows.
"""

import warnings

import torch
from sklearn.decomposition import MiniBatchNMF
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from rayscope.baselines.kmeans import clusters
from rayscope.dictionaries import Linear


def semi_nmf(x_SD: Tensor, latents: int, k: int, *, seed: int = 0, iterations: int = 50) -> Linear:
    """Rays W of x = b + Z W, Z >= 0 and W of any sign: Ding, Li and Jordan's semi-NMF (2010), coded by OMP of rays.

        W = (Z'Z)^-1 Z'X,   Z <- Z sqrt( ((X W')+ + Z (W W')-) / ((X W')- + Z (W W')+) ),   (.)+,
        (.)- the positive and negative parts

    from k-means' clusters, their indicator plus .2; no step raises the error. At most D rows: from D + 1 on some rows
    span all vectors with non-negative weights, the error is 0 whatever the data, and nothing is learned.
    b is the mean, as in the other baselines, so that no code goes into it (the paper's model has no b).
    """
    mean_D = x_SD.double().mean(0)
    W_LD, losses = semi_nmf_fit((x_SD.double() - mean_D).float(), latents, seed, iterations)
    norms_L = W_LD.norm(dim=1)
    W_LD = W_LD[norms_L > 1e-6 * norms_L.max()]
    dictionary = Linear(len(mean_D), len(W_LD), k, "omp", W_LD, mean_D, signed=False)
    dictionary.provenance = {"sample": len(x_SD), "seed": seed, "iterations": iterations, "loss": losses[-1]}
    return dictionary


@torch.no_grad()
def semi_nmf_fit(X_SD: Tensor, latents: int, seed: int, iterations: int) -> tuple[Tensor, list[float]]:
    """(W, |X - Z W|^2 / |X|^2 after each update of W)."""
    S, D = X_SD.shape
    if not 1 <= latents <= min(S, D):
        raise ValueError(
            f"latents={latents}: semi-NMF takes 1 to {min(S, D)} of {S} vectors of width {D}; "
            "more rows span everything without learning"
        )
    total = X_SD.double().square().sum()
    if not total > 0:
        raise ValueError(f"the {S} vectors of the sample are all equal; semi-NMF needs some that differ")
    X_SD = X_SD / (total / S).sqrt().float()  # of mean length 1, so that float32 has the digits
    centroids_LD = clusters(X_SD, latents, seed=seed, iterations=5)
    near_S = torch.cat([torch.cdist(part_CD, centroids_LD).argmin(1) for part_CD in X_SD.split(4096)])
    Z_SL = torch.full((S, latents), 0.2)
    Z_SL[torch.arange(S), near_S] += 1
    losses = []
    for step in range(iterations + 1):
        gram_LL = (Z_SL.T @ Z_SL).double()
        ridge_LL = 1e-9 * gram_LL.diagonal().mean() * torch.eye(latents, dtype=torch.float64)
        product_LD = (Z_SL.T @ X_SD).double()
        W_LD = torch.linalg.solve(gram_LL + ridge_LL, product_LD)
        explained = 2 * (W_LD * product_LD).sum() - (W_LD * (gram_LL @ W_LD)).sum()
        losses.append((1 - explained / S).item())
        if step == iterations:
            break
        W32_LD = W_LD.float()
        along_SL, rows_LL = X_SD @ W32_LD.T, W32_LD @ W32_LD.T
        up_SL = along_SL.clamp_min(0).addmm_(Z_SL, (-rows_LL).clamp_min_(0))
        down_SL = along_SL.neg_().clamp_min_(0).addmm_(Z_SL, rows_LL.clamp_min(0))
        Z_SL *= up_SL.div_(down_SL.clamp_min_(1e-12)).sqrt_()
    return W_LD * (total / S).sqrt(), losses


def nmf(
    x_SD: Tensor, latents: int, k: int, *, seed: int = 0, iterations: int = 50, most_negative: float = 0.1
) -> Linear | None:
    """Rays W >= 0 of relu(x) = Z W, Z >= 0, by scikit-learn's MiniBatchNMF; bias 0, coded by OMP of rays.

    For sites whose entries are hardly ever negative, as after a ReLU or GELU: what is negative is taken for 0 in the
    fit and left to the error when measured. None where the negative entries hold more than `most_negative` of the
    sample's energy.
    At most D rows: the D coordinates alone make the error 0.
    """
    S, D = x_SD.shape
    if not 1 <= latents <= min(S, D):
        raise ValueError(f"latents={latents}: NMF takes 1 to {min(S, D)} of {S} vectors of width {D}")
    positive_SD = x_SD.float().relu()
    negative = 1 - (positive_SD.double().square().sum() / x_SD.double().square().sum().clamp_min(1e-300)).item()
    if negative > most_negative or not positive_SD.any():
        return None
    positive_SD = positive_SD / positive_SD.mean()
    fit = MiniBatchNMF(latents, init="nndsvda", batch_size=4096, max_iter=iterations, random_state=seed)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said in provenance
        fit.fit(positive_SD.numpy())
    W_LD = torch.from_numpy(fit.components_)
    norms_L = W_LD.norm(dim=1)
    W_LD = W_LD[norms_L > 1e-6 * norms_L.max()]
    dictionary = Linear(D, len(W_LD), k, "omp", W_LD, torch.zeros(D), signed=False)
    found = {"iterations": fit.n_iter_, "converged": fit.n_iter_ < iterations, "negative_energy": negative}
    dictionary.provenance = {"sample": S, "seed": seed, **found}
    return dictionary
