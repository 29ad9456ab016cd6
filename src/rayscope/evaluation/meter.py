"""Meter: what is summed of one codec over vectors, per document, so that any statistic of any resample follows.

N vectors, D site width, L latents, M non-zero codes of N vectors, G documents.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rayscope.dictionaries import Codes, Dictionary
from rayscope.evaluation import metrics
from rayscope.evaluation.quantisation import Calibration
from rayscope.streams.positions import VIEWS

Codec = Dictionary | Callable[[Tensor, Tensor], Tensor]  # or a function of (x_ND, which are at position 0) to x_hat_ND


class Spreads:
    """What every codec's errors are put against: the spread of the vectors, with position 0 left out and with it."""

    def __init__(self, width: int, documents: int):
        self.at = {place: metrics.Spread(width, documents) for place in VIEWS}

    def update(self, x_ND: Tensor, documents_N: Tensor, first_N: Tensor) -> None:
        x_ND, later_N = x_ND.cpu(), ~first_N
        self.at["included"].update(x_ND, documents_N)
        self.at["excluded"].update(x_ND[later_N], documents_N[later_N])


class Meter:
    """With position 0 left out and with it: the sums of errors and of codes, and of the loss and KL that are added to it.

    spreads: of the same vectors, updated once for all meters of a site.
    seen: what validation vectors show of a dictionary's codes; they are put on its grid, unless quantise is False.
    """

    def __init__(self, codec: Codec, spreads: Spreads, seen: Calibration | None = None, quantise: bool = True):
        documents = len(spreads.at["included"].count_G)
        self.codec = codec
        self.latents = codec.latents if isinstance(codec, Dictionary) else 0
        self.grid = seen.grid() if seen and quantise else None
        self.sums = {p: metrics.Sums(spreads.at[p]) for p in VIEWS}
        self.codes = {p: CodeSums(codec, documents, seen.frequency(p) if seen else None) for p in VIEWS}
        zeros = lambda: torch.zeros(documents, dtype=torch.float64)  # noqa: E731
        self.loss = {p: zeros() for p in VIEWS}
        self.kl = {p: zeros() for p in VIEWS}

    def reconstruct(self, x_ND: Tensor, tokens_N: Tensor, documents_N: Tensor, first_N: Tensor) -> Tensor:
        """x_hat_ND; its errors and codes are added to the sums. documents_N: 0 .. G - 1; first_N: which are at position 0."""
        later_N = ~first_N
        if isinstance(self.codec, Dictionary):
            codes = self.codec.encode_sparse(x_ND, tokens_N)
            quantised = self.grid.quantise(codes, first_N) if self.grid else codes
            x_hat_ND = self.codec.decode_sparse(quantised, tokens_N)
            self.codes["included"].update(codes, documents_N, torch.ones_like(later_N))
            self.codes["excluded"].update(codes, documents_N, later_N)
        else:
            x_hat_ND = self.codec(x_ND, first_N)
        self.sums["included"].update(x_ND, x_hat_ND, documents_N)
        kept_N = later_N.to(x_ND.device)
        self.sums["excluded"].update(x_ND[kept_N], x_hat_ND[kept_N], documents_N[later_N])
        return x_hat_ND

    def statistics(self, position0: str = "excluded") -> dict[str, Callable[[Tensor], Tensor]]:
        """{metric: weights_BG -> [B]}: fvu, l2_ratio, and of a dictionary l0, density, bits_entropy."""
        sums, codes, ratio = self.sums[position0], self.codes[position0], metrics.ratio_of_sums
        found = {"fvu": sums.fvu, "l2_ratio": sums.l2_ratio}
        if self.latents:
            found |= {
                "l0": ratio(codes.active_G, codes.vectors_G),
                "density": ratio(codes.active_G / self.latents, codes.vectors_G),
                "bits_entropy": ratio(codes.entropy_G, codes.vectors_G),
            }
        return found

    def whole(self, position0: str = "excluded") -> dict[str, float]:
        """dead and bits, of all documents together."""
        if not isinstance(self.codec, Dictionary):
            return {}
        codes = self.codes[position0]
        dead = (codes.fired_L == 0).double().mean().item()
        return {"dead": dead, "bits": self.codec.mean_bits(codes.counts)}


class CodeSums:
    """Counts of non-zero codes, per document and per latent, how many vectors have each count, and bits_entropy.

    frequency_L: each latent's, for bits_entropy, which is not summed without.
    """

    def __init__(self, codec: Codec, documents: int, frequency_L: Tensor | None):
        latents = codec.latents if isinstance(codec, Dictionary) else 0
        self.codec, self.frequency_L = codec, frequency_L
        self.entropy_G = torch.zeros(documents, dtype=torch.float64)
        self.active_G = torch.zeros(documents, dtype=torch.float64)
        self.vectors_G = torch.zeros(documents, dtype=torch.float64)
        self.fired_L = torch.zeros(latents, dtype=torch.int64)
        self.counts = torch.zeros(latents + 1, dtype=torch.int64)

    def update(self, codes: Codes, documents_N: Tensor, chosen_N: Tensor) -> None:
        active_N = codes.offsets.diff().cpu()
        self.active_G.index_add_(0, documents_N[chosen_N], active_N[chosen_N].double())
        self.vectors_G.index_add_(0, documents_N[chosen_N], torch.ones(int(chosen_N.sum()), dtype=torch.float64))
        kept_M = chosen_N.repeat_interleave(active_N)
        self.fired_L += torch.bincount(codes.indices_M.cpu()[kept_M], minlength=len(self.fired_L))
        self.counts += torch.bincount(active_N[chosen_N], minlength=len(self.counts))
        if self.frequency_L is not None and isinstance(self.codec, Dictionary):
            bits_N = self.codec.bits_entropy(codes, self.frequency_L).cpu()
            self.entropy_G.index_add_(0, documents_N[chosen_N], bits_N[chosen_N])
