"""Codecs: what a table has rows of. Dictionaries, and references that need none.

N vectors, D site width, L latents.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rayscope.dictionaries import Codes, Dictionary
from rayscope.evaluation.quantisation import Calibration
from rayscope.streams.positions import VIEWS
from rayscope.streams.stream import Vectors

REFERENCES = ("identity", "mean", "position0")


class Codec(ABC):
    """What is measured. One without latents has no metric of codes (l0, density, dead, bits, bits_entropy)."""

    kind = "codec"
    k: int | None = None
    latents = 0
    quantised = False
    provenance: Mapping[str, Any] = {}

    @abstractmethod
    def reconstruct(self, vectors: Vectors) -> tuple[Tensor, Codes]:
        """(x_hat_ND, codes before quantisation)."""

    def mean_bits(self, counts: Tensor) -> float:
        return torch.nan

    def bits_entropy(self, codes: Codes, view: str) -> Tensor:
        """(N): NaN if the frequencies of latents are not known."""
        return torch.full((len(codes),), torch.nan, dtype=torch.float64)


class DictionaryCodec(Codec):
    """A dictionary. seen: its codes of validation vectors. They are put on its grid, unless quantise is False."""

    def __init__(self, dictionary: Dictionary, seen: Calibration | None = None, quantise: bool = True):
        self.dictionary = dictionary
        self.frequency_L = {view: seen.frequency(view) for view in VIEWS} if seen else {}
        self.grid = seen.grid() if seen and quantise else None
        self.kind, self.k, self.latents = dictionary.kind, dictionary.k, dictionary.latents
        self.quantised, self.provenance = self.grid is not None, dictionary.provenance

    def reconstruct(self, vectors: Vectors) -> tuple[Tensor, Codes]:
        codes = vectors.encode(self.dictionary)
        decoded = self.grid.quantise(codes, vectors.first_N) if self.grid else codes
        return self.dictionary.decode_sparse(decoded, vectors.tokens_N), codes

    def mean_bits(self, counts: Tensor) -> float:
        return self.dictionary.mean_bits(counts)

    def bits_entropy(self, codes: Codes, view: str) -> Tensor:
        if view not in self.frequency_L:
            return super().bits_entropy(codes, view)
        return self.dictionary.bits_entropy(codes, self.frequency_L[view]).cpu()


class Identity(Codec):
    """x_hat = x: nothing is lost."""

    def reconstruct(self, vectors: Vectors) -> tuple[Tensor, Codes]:
        return vectors.target_ND, no_codes(vectors)


class Mean(Codec):
    """x_hat = mean: nothing is known."""

    def __init__(self, mean_D: Tensor, provenance: Mapping[str, Any] | None = None):
        self.mean_D, self.provenance = mean_D, provenance or {}

    def reconstruct(self, vectors: Vectors) -> tuple[Tensor, Codes]:
        return self.mean_D.expand_as(vectors.target_ND), no_codes(vectors)


class Position0(Codec):
    """x_hat = one mean at position 0, another elsewhere: that alone is known."""

    def __init__(self, first_D: Tensor, rest_D: Tensor, provenance: Mapping[str, Any] | None = None):
        self.first_D, self.rest_D, self.provenance = first_D, rest_D, provenance or {}

    def reconstruct(self, vectors: Vectors) -> tuple[Tensor, Codes]:
        first_N1 = vectors.first_N.to(vectors.target_ND.device)[:, None]
        return torch.where(first_N1, self.first_D, self.rest_D), no_codes(vectors)


def references(first_D: Tensor, rest_D: Tensor, provenance: Mapping[str, Any] | None = None) -> dict[str, Codec]:
    """By their names in every table; from a site's mean at position 0 and its mean at later positions in a stream.

    provenance: of what the means are of.
    """
    codecs = (Identity(), Mean(rest_D, provenance), Position0(first_D, rest_D, provenance))
    return dict(zip(REFERENCES, codecs, strict=True))


def no_codes(vectors: Vectors) -> Codes:
    nothing = torch.zeros(0, dtype=torch.int64)
    return Codes(nothing, nothing.float(), torch.zeros(len(vectors.first_N) + 1, dtype=torch.int64), 0)
