"""K-SVD: directions for which OMP leaves the least error.

S vectors of a sample, U users of one direction, D site width, L directions.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rayscope.dictionaries import Linear
from rayscope.dictionaries.coders.omp import omp


@torch.no_grad()
def ksvd(x_SD: Tensor, latents: int, k: int, *, seed: int = 0, sweeps: int = 10) -> Linear:
    """Signed directions by approximate K-SVD (Rubinstein, Zibulevsky and Elad 2008), coded by OMP at k.

    From sample vectors taken at random; `sweeps` times: codes of all vectors by OMP; then of each direction, its users'
    error without it E = X - sum of the others:  w <- E' z / |E' z|,  z <- E w.  A direction that no vector uses becomes
    the vector with the greatest error, each vector once in a sweep.
    """
    S, D = x_SD.shape
    if not k <= latents <= S:
        raise ValueError(f"latents={latents}: K-SVD takes k={k} to {S}, the vectors of the sample")
    mean_D = x_SD.double().mean(0)
    X_SD = (x_SD.double() - mean_D).float()
    norms_S = X_SD.norm(dim=1)
    # those at the mean have no direction
    candidates = (norms_S > 1e-6 * norms_S.max()).nonzero()[:, 0]
    if len(candidates) < latents:
        raise ValueError(f"latents={latents}: only {len(candidates)} vectors of the sample differ from its mean")
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
    W_LD = F.normalize(X_SD[candidates[order[:latents]]])
    for _ in range(sweeps):
        W_LD = sweep(X_SD, W_LD, k)
    dictionary = Linear(D, latents, k, "omp", W_LD, mean_D)
    dictionary.provenance = {"sample": S, "seed": seed, "sweeps": sweeps, "fitted_k": k}
    return dictionary


def sweep(X_SD: Tensor, W_LD: Tensor, k: int) -> Tensor:
    """Codes by OMP, then each direction in turn."""
    W_LD = W_LD.clone()
    indices_Sk, values_Sk = omp(X_SD, W_LD, k)
    error_SD = X_SD - torch.cat([(v[:, None] @ W_LD[i])[:, 0] for i, v in _chunks(indices_Sk, values_Sk)])
    used = values_Sk.flatten().nonzero()[:, 0]
    used = used[indices_Sk.flatten()[used].argsort(stable=True)]
    users = (used // k).split(indices_Sk.flatten()[used].bincount(minlength=len(W_LD)).tolist())
    values = values_Sk.flatten()[used].split([len(u) for u in users])
    unused = []
    for latent, (users_U, z_U) in enumerate(zip(users, values, strict=True)):
        if not len(users_U):
            unused.append(latent)
            continue
        own_UD = error_SD[users_U].addr_(z_U, W_LD[latent])
        w_D = own_UD.T @ z_U
        if w_D.norm() > 0:
            W_LD[latent] = w_D / w_D.norm()
        error_SD[users_U] = own_UD.addr_(own_UD @ W_LD[latent], W_LD[latent], alpha=-1)
    if unused:
        worst = error_SD.norm(dim=1).topk(min(len(unused), len(X_SD))).indices
        worst = worst[X_SD[worst].norm(dim=1) > 0]
        W_LD[unused[: len(worst)]] = F.normalize(X_SD[worst])
    return W_LD


def _chunks(indices_Sk: Tensor, values_Sk: Tensor, size: int = 1024):
    return zip(indices_Sk.split(size), values_Sk.split(size), strict=True)
