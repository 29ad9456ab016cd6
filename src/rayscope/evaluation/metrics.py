"""One definition of each metric, as pure functions, and the sums that a stream of vectors needs.

N vectors, D site width, G documents, B bootstrap draws.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

# With n documents, a share n^-n of resamples is one of them, n times: below 5 that reaches the ends of a central 95%,
# which then say what single documents do (of one, width 0). At 5 it covers a normal mean 84 times of 100, below less.
FEWEST_DOCUMENTS = 5
FEWEST_DRAWS = 20  # less than half a draw lies beyond either end of the central 95% of fewer
CACHED = 2**16  # numbers that are worked on at a time, so that float64 copies of them stay in the cache
CONSTANT = 1e-12  # vectors that vary by less than this share of their length do not vary: what they do is rounding


def fvu(x_ND: Tensor, x_hat_ND: Tensor) -> float:
    """Fraction of variance unexplained: sum |x - x_hat|^2 / sum |x - x_bar|^2, x_bar the mean of the same vectors.

    Sums in float64 over all vectors, divided once: predicting the mean gives 1, identity 0.
    """
    variance, documents_N = VarianceSums(x_ND.shape[1], 1), torch.zeros(len(x_ND), dtype=torch.long)
    variance.update(x_ND, documents_N)
    sums = ErrorSums(variance)
    sums.update(*errors(x_ND, x_hat_ND), documents_N)
    return sums.fvu(torch.ones(1, 1, dtype=torch.float64)).item()


def errors(x_ND: Tensor, x_hat_ND: Tensor) -> tuple[Tensor, Tensor]:
    """(|x - x_hat|^2, |x_hat| / |x|) of each vector, in float64 on the CPU."""
    step = max(1, CACHED // max(1, x_ND.shape[1])) if x_ND.device.type == "cpu" else max(1, len(x_ND))
    pairs = zip(x_ND.detach().split(step), x_hat_ND.detach().split(step), strict=True)
    errors_N, ratios_N = zip(*(errors_of(x_CD.double(), x_hat_CD.double()) for x_CD, x_hat_CD in pairs), strict=True)
    return torch.cat(errors_N).cpu(), torch.cat(ratios_N).cpu()


def errors_of(x_CD: Tensor, x_hat_CD: Tensor) -> tuple[Tensor, Tensor]:
    ratio_C = x_hat_CD.norm(dim=1) / x_CD.norm(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
    return (x_CD - x_hat_CD).square().sum(1), ratio_C


class VarianceSums:
    """Float64 sums of vectors per document, from which |x - x_bar|^2 follows: the same for every codec of the vectors.

    Sums are taken about the first batch's mean, so that a large common offset costs no digits.
    """

    def __init__(self, width: int, documents: int):
        self.centre_D: Tensor | None = None
        self.x_GD = torch.zeros(documents, width, dtype=torch.float64)
        self.square_G, self.count_G = torch.zeros(2, documents, dtype=torch.float64)

    def update(self, x_ND: Tensor, documents_N: Tensor) -> None:
        x_ND, documents_N = x_ND.detach().cpu().double(), documents_N.cpu()
        if self.centre_D is None:
            self.centre_D = x_ND.mean(0)
        centred_ND = x_ND - self.centre_D
        self.x_GD.index_add_(0, documents_N, centred_ND)
        self.square_G.index_add_(0, documents_N, centred_ND.square().sum(1))
        self.count_G.index_add_(0, documents_N, torch.ones(len(x_ND), dtype=torch.float64))

    def means(self) -> Tensor:
        """(G, D): the mean of each document's vectors; of one without a vector, the first batch's."""
        if self.centre_D is None:
            raise ValueError("no vector was given to update(); means need at least one")
        return self.centre_D + self.x_GD / self.count_G.clamp_min(1)[:, None]

    def of_documents(self) -> Tensor:
        """(G): sum |x - x_bar|^2 of each document's vectors, x_bar the mean of all documents'."""
        mean_D = self.x_GD.sum(0) / self.count_G.sum()
        return self.square_G - 2 * self.x_GD @ mean_D + self.count_G * mean_D.square().sum()

    def size_of_centres(self) -> Tensor:
        """(G): |centre|^2 for each vector of a document."""
        return self.count_G * (0.0 if self.centre_D is None else self.centre_D.square().sum())


class ErrorSums:
    """Float64 sums of a codec's errors per document, from which fvu and l2_ratio follow, over any set of documents.

    variance: of the same vectors, updated once for all codecs.
    """

    def __init__(self, variance: VarianceSums):
        self.variance = variance
        self.error_G, self.ratio_G = torch.zeros(2, len(variance.count_G), dtype=torch.float64)

    def update(self, error_N: Tensor, ratio_N: Tensor, documents_N: Tensor) -> None:
        """error_N, ratio_N: see `errors`."""
        self.error_G.index_add_(0, documents_N, error_N)
        self.ratio_G.index_add_(0, documents_N, ratio_N)

    def fvu(self, weights_BG: Tensor) -> Tensor:
        """[B]: sum |x - x_hat|^2 / sum |x - x_bar|^2, for each row of document weights; x_bar is that of all documents.

        With a mean of its own, each resample of a few documents would have less variance, and a larger FVU, than the
        sample. NaN for vectors that do not vary.
        """
        error_B, variance_B = weights_BG @ self.error_G, weights_BG @ self.variance.of_documents()
        constant_B = variance_B <= CONSTANT**2 * (weights_BG @ self.variance.size_of_centres())
        return torch.where(constant_B, torch.nan, error_B / variance_B)

    def l2_ratio(self, weights_BG: Tensor) -> Tensor:
        """[B]: mean over vectors of |x_hat| / |x|."""
        return (weights_BG @ self.ratio_G) / (weights_BG @ self.variance.count_G)


def bootstrap_weights(documents: int, draws: int, seed: int = 0) -> Tensor:
    """[B, G]: how often each document is drawn in each of B resamples of G documents with replacement."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.multinomial(documents, np.full(documents, 1 / documents), size=draws)).double()


def interval(
    statistic: Callable[[Tensor], Tensor], weights_BG: Tensor, documents: int | None = None
) -> tuple[float, float]:
    """The central 95% of the statistic over bootstrap resamples;
    NaN for fewer of them, or of documents, than one takes.

    documents: those that the statistic is of; all, unless given.
    """
    documents = weights_BG.shape[-1] if documents is None else documents
    if documents < FEWEST_DOCUMENTS or len(weights_BG) < FEWEST_DRAWS:
        return math.nan, math.nan
    draws = statistic(weights_BG)
    low, high = torch.nanquantile(draws, torch.tensor([0.025, 0.975], dtype=draws.dtype)).tolist()
    return low, high


def ratio_of_sums(numerator_G: Tensor, denominator_G: Tensor) -> Callable[[Tensor], Tensor]:
    """weights -> weighted sum of the numerator over that of the denominator: a mean over tokens. NaN if that is 0."""

    def ratio(weights_BG: Tensor) -> Tensor:
        below_B = weights_BG @ denominator_G
        return torch.where(below_B != 0, (weights_BG @ numerator_G) / below_B, torch.nan)

    return ratio


def loss_recovered(ablated_G: Tensor, spliced_G: Tensor, clean_G: Tensor) -> Callable[[Tensor], Tensor]:
    """weights -> (CE_ablated - CE_spliced) / (CE_ablated - CE_clean), from losses summed per document."""
    return ratio_of_sums(ablated_G - spliced_G, ablated_G - clean_G)
