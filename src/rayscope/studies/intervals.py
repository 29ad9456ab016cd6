"""Intervals of what a study observes: over documents by their bootstrap, over seeds by t.

B bootstrap draws, S seeds, G documents, Q quantiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.stats import t
from torch import Tensor

from rayscope.evaluation.metrics import FEWEST_DOCUMENTS, bootstrap_weights

QUANTILES = 199  # of t, at 1/200, 2/200, ...: the fifth is that at .025


@dataclass(frozen=True)
class Observed:
    """A number and its 95% interval (the number itself, twice, if nothing is drawn)."""

    value: float
    low: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> "Observed":
        return cls(value, value, value)


def enough_documents(documents: int, option: str) -> None:
    """Raises ValueError for fewer documents than an interval takes. option: as given, what says how many are read."""
    if documents < FEWEST_DOCUMENTS:
        raise ValueError(
            f"{option} reads {documents} document{'s' * (documents != 1)} of the test split, an interval needs "
            f"{FEWEST_DOCUMENTS}; raise it, or give more or shorter documents"
        )


def resamples(documents: int, draws: int, seed: int = 0) -> Tensor:
    """`metrics.bootstrap_weights`; ValueError for fewer documents than an interval takes."""
    enough_documents(documents, "text: the study")
    return bootstrap_weights(documents, draws, seed)


def over_seeds(draws: Sequence[tuple[float, Tensor]]) -> Observed:
    """The mean over seeds of a statistic, each seed given as (its value, [B] its bootstrap over documents).

    With m_b the mean over seeds under draw b of the documents and s the standard deviation of the S values, the ends
    are the .025 and .975 quantiles of m_b + s / sqrt(S) T, T of Student's t with S - 1 degrees of freedom: the t
    interval if documents make no difference, the bootstrap's if seeds make none, and for two sources of error at once
    the solution of Behrens and Fisher (Fisher 1935, "The fiducial argument in statistical inference"), which covers
    at least what it says (Robinson 1976). What a seed's documents do to that seed alone is in both terms, so the
    interval is then wider than need be. Of one seed: the bootstrap's.

    An end is a draw, never a mean of two, which with infinity is no number. Draws that are NaN are left out.
    """
    values_S = np.array([value for value, _ in draws])
    documents_B = torch.stack([draws_B.double() for _, draws_B in draws]).mean(0).numpy()
    means_N = np.add.outer(documents_B, spread_over_seeds(values_S)).ravel()
    return Observed(float(values_S.mean()), *ends(means_N[~np.isnan(means_N)]))


def spread_over_seeds(values_S: np.ndarray) -> np.ndarray:
    """[Q] the quantiles of s / sqrt(S) T; 0 for one seed, and if a value is not finite, of which no draw is made."""
    S = len(values_S)
    if S < 2 or not np.isfinite(values_S).all():
        return np.zeros(1)
    return values_S.std(ddof=1) / S**0.5 * quantiles_of_t(S - 1)


@cache
def quantiles_of_t(degrees: int) -> np.ndarray:
    return t.ppf(np.arange(1, QUANTILES + 1) / (QUANTILES + 1), degrees)


def ends(draws_N: np.ndarray, outside: float = 0.025) -> tuple[float, float]:
    """The draws nearest to the quantiles, on their outer sides; NaN if there are none."""
    if not (N := len(draws_N)):
        return float("nan"), float("nan")
    places = int(outside * (N - 1)), N - 1 - int(outside * (N - 1))
    low, high = np.partition(draws_N, places)[list(places)]
    return float(low), float(high)
