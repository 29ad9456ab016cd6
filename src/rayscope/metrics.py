"""One definition of each metric, as pure functions, and the sums that a stream of vectors needs.

N vectors, D site width, G documents, B bootstrap draws.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

LN2 = math.log(2)


def fvu(x_ND: Tensor, x_hat_ND: Tensor) -> float:
    """Fraction of variance unexplained: sum |x - x_hat|^2 / sum |x - x_bar|^2, x_bar the mean of the same vectors.

    Sums in float64 over all vectors, divided once: predicting the mean gives 1, identity 0.
    """
    sums = Sums(x_ND.shape[1], 1)
    sums.update(x_ND, x_hat_ND, torch.zeros(len(x_ND), dtype=torch.long))
    return sums.fvu(torch.ones(1, 1, dtype=torch.float64)).item()


def bits(latents: int, k: float | Tensor, signed: bool, fixed_support: bool = False, dense: int = 0) -> float | Tensor:
    """Bits per token of k non-zero codes: log2 C(L, k) + 8 k, and k more for signs.

    The first term, which latents, is 0 where the support never changes (the first k principal components). `dense` of
    the latents are on in every code, beside the k: log2 C(L - dense, k), and 9 bits for each of them.
    """
    k_tensor = torch.as_tensor(k, dtype=torch.float64)
    size = torch.tensor(float(latents - dense), dtype=torch.float64)
    choose = torch.lgamma(size + 1) - torch.lgamma(k_tensor + 1) - torch.lgamma(size - k_tensor + 1)
    total = (0 if fixed_support else choose / LN2) + (9 if signed else 8) * k_tensor + 9 * dense
    return total if isinstance(k, Tensor) else float(total)


def k_of_bits(budget: float, latents: int, signed: bool, fixed_support: bool = False, dense: int = 0) -> int:
    """The least k whose code costs at least `budget` bits per token (all latents, where none does)."""
    for k in range(1, latents - dense + 1):
        if bits(latents, k, signed, fixed_support, dense) >= budget:
            return k
    return latents - dense


def bits_entropy(
    indices_M: Tensor,
    offsets: Tensor,
    frequency_L: Tensor,
    signed: bool,
    fixed_support: bool = False,
    dense: int = 0,
) -> Tensor:
    """(N): bits of each code under the latents' own firing frequencies, 0 < p < 1 (MDL, 2410.11179).

    -sum_active log2 p - sum_silent log2 (1 - p), which is one constant and log2 (1 - p) / p for each active latent; 0
    where the support never changes. And 8 bits for the value of each active latent, 1 for its sign, 9 for each of the
    last `dense` latents, which are always on. Codes are compressed rows: code n is indices_M[offsets[n] : offsets[n + 1]].
    """
    latents = len(frequency_L) - dense
    p_L = frequency_L.double()
    active_L = torch.full_like(p_L, 9.0 if signed else 8.0)
    base = p_L.new_tensor(9.0 * dense)
    if not fixed_support:
        active_L += ((1 - p_L) / p_L).log2()
        base -= torch.log1p(-p_L[:latents]).sum() / LN2
    active_L[latents:] = 0
    vectors = torch.arange(len(offsets) - 1, device=offsets.device)
    rows_M = vectors.repeat_interleave(offsets.diff(), output_size=len(indices_M))
    return base.expand(len(vectors)).index_add(0, rows_M, active_L[indices_M])


def loss_recovered(ablated: float, spliced: float, clean: float) -> float:
    """(CE_ablated - CE_spliced) / (CE_ablated - CE_clean)."""
    return (ablated - spliced) / (ablated - clean) if ablated != clean else float("nan")


class Sums:
    """Float64 sums per document from which fvu and l2_ratio follow, over any set of documents.

    Sums are taken about the first batch's mean, so that a large common offset costs no digits.
    """

    def __init__(self, width: int, documents: int):
        self.centre_D: Tensor | None = None
        self.x_GD = torch.zeros(documents, width, dtype=torch.float64)
        self.square_G = torch.zeros(documents, dtype=torch.float64)
        self.error_G = torch.zeros(documents, dtype=torch.float64)
        self.ratio_G = torch.zeros(documents, dtype=torch.float64)
        self.count_G = torch.zeros(documents, dtype=torch.float64)

    def update(self, x_ND: Tensor, x_hat_ND: Tensor, documents_N: Tensor) -> None:
        x, x_hat, documents = x_ND.detach().cpu().double(), x_hat_ND.detach().cpu().double(), documents_N.cpu()
        if self.centre_D is None:
            self.centre_D = x.mean(0)
        centred = x - self.centre_D
        norm = x.norm(dim=1)
        self.x_GD.index_add_(0, documents, centred)
        self.square_G.index_add_(0, documents, centred.square().sum(1))
        self.error_G.index_add_(0, documents, (x - x_hat).square().sum(1))
        self.ratio_G.index_add_(0, documents, x_hat.norm(dim=1) / norm.clamp(min=torch.finfo(norm.dtype).tiny))
        self.count_G.index_add_(0, documents, torch.ones(len(x), dtype=torch.float64))

    def fvu(self, weights_BG: Tensor) -> Tensor:
        """[B]: sum |x - x_hat|^2 / sum |x - x_bar|^2, for each row of document weights; x_bar is that of all documents.

        With a mean of its own, each resample of a few documents would have less variance, and a larger FVU, than the sample.
        """
        mean_D = self.x_GD.sum(0) / self.count_G.sum()
        spread_G = self.square_G - 2 * self.x_GD @ mean_D + self.count_G * mean_D.square().sum()
        return (weights_BG @ self.error_G) / (weights_BG @ spread_G)

    def l2_ratio(self, weights_BG: Tensor) -> Tensor:
        """[B]: mean over vectors of |x_hat| / |x|."""
        return (weights_BG @ self.ratio_G) / (weights_BG @ self.count_G)


def bootstrap_weights(documents: int, draws: int, seed: int = 0) -> Tensor:
    """[B, G]: how often each document is drawn in each of B resamples of G documents with replacement."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.multinomial(documents, np.full(documents, 1 / documents), size=draws)).double()


def interval(statistic: Callable[[Tensor], Tensor], weights_BG: Tensor) -> tuple[float, float]:
    """The central 95% of the statistic over bootstrap resamples."""
    draws = statistic(weights_BG)
    low, high = torch.nanquantile(draws, torch.tensor([0.025, 0.975], dtype=draws.dtype)).tolist()
    return low, high


def ratio_of_sums(numerator_G: Tensor, denominator_G: Tensor) -> Callable[[Tensor], Tensor]:
    """weights -> weighted sum of the numerator over that of the denominator: a mean over tokens."""
    return lambda weights_BG: (weights_BG @ numerator_G) / (weights_BG @ denominator_G)
