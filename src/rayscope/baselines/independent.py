"""Independent components.

S vectors of a sample, D site width, R components.
"""

import warnings
from contextlib import suppress

import torch
from numpy.linalg import LinAlgError
from sklearn.decomposition import FastICA
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from rayscope.dictionaries import Linear


def ica(
    x_SD: Tensor,
    components: int,
    k: int,
    *,
    seed: int = 0,
    iterations: int = 100,
    tolerance: float = 1e-3,
) -> Linear:
    """Directions from which independent, non-Gaussian sources are mixed:
    x = mean + s A, s = whitened x rotated by FastICA.

    Whitening keeps the `components` greatest principal components, or as many as have variance. Rows of A, scaled to
    unit length, are the directions. They are not orthogonal, so that y . a is no source; the coder is OMP, which suits
    any directions (choosing the largest sources instead would use a k for which the others' part is lost).
    """
    if components < 1:
        raise ValueError(f"components={components} must be at least 1")
    mean_D = x_SD.double().mean(0)
    centred_SD = x_SD.double() - mean_D
    variance_D, columns_DD = torch.linalg.eigh(centred_SD.T @ centred_SD / len(x_SD))
    rank = int((variance_D > 1e-6 * variance_D[-1]).sum())
    if not variance_D[-1] > 0:
        raise ValueError(f"the {len(x_SD)} vectors of the sample are all equal; ICA needs some that differ")
    kept = min(components, rank)
    scale_R, axes_DR = variance_D[-kept:].sqrt(), columns_DD[:, -kept:]
    white_SR = (centred_SD @ axes_DR / scale_R).float().numpy()
    fit = FastICA(whiten=False, max_iter=iterations, tol=tolerance, random_state=seed)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said in provenance
        with suppress(
            LinAlgError
        ):  # of the rotation's pseudo-inverse, at the end: not read here, and in float32 an SVD
            fit.fit(white_SR)  # of singular values that are all 1 does not always converge
    rotation_RR = torch.from_numpy(fit.components_).double()
    dictionary = Linear(len(mean_D), kept, k, "omp", rotation_RR * scale_R @ axes_DR.T, mean_D)
    found = {"iterations": fit.n_iter_, "converged": fit.n_iter_ < iterations}
    dictionary.provenance = {"sample": len(x_SD), "seed": seed, **found}
    return dictionary
