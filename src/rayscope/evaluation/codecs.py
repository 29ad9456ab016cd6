"""Codecs: what a table has rows of. Dictionaries, and references that need none.

N vectors, D site width, L latents.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from rayscope.dictionaries import Codes, Dictionary
from rayscope.dictionaries.code_length import VALUE_BITS
from rayscope.evaluation.calibration import Calibration
from rayscope.evaluation.quantisation import Quantiser
from rayscope.streams.positions import VIEWS
from rayscope.streams.stream import Vectors

REFERENCES = ("identity", "mean", "position0")


class Codec(ABC):
    """What is measured. One without latents has no metric of codes (l0, density, dead, bits, bits_entropy).

    value_bits: what its values are measured at, fewest first. None: as they are, or as the codec itself says.
    """

    kind = "codec"
    k: int | None = None
    latents = 0
    value_bits: tuple[int | None, ...] = (None,)
    provenance: Mapping[str, Any] = {}

    def encode(self, vectors: Vectors) -> Codes:
        """Codes as they are."""
        nothing = torch.zeros(0, dtype=torch.int64)
        return Codes(nothing, nothing.float(), torch.zeros(len(vectors.first_N) + 1, dtype=torch.int64), 0)

    @abstractmethod
    def decode(self, codes: Codes, vectors: Vectors, value_bits: int | None = None) -> Tensor:
        """x_hat_ND, of the vectors' codes at one of the codec's value_bits."""

    def reconstruct(self, vectors: Vectors) -> Tensor:
        """x_hat_ND at the most of its value_bits."""
        return self.decode(self.encode(vectors), vectors, self.value_bits[-1])

    def mean_bits(self, counts: Tensor, value_bits: int | None = None) -> float:
        return torch.nan

    def bits_entropy(self, codes: Codes, view: str, value_bits: int | None = None) -> Tensor:
        """(N): NaN if the frequencies of latents are not known."""
        return torch.full((len(codes),), torch.nan, dtype=torch.float64)

    def table_floats(self, value_bits: int | None = None) -> float:
        """How many numbers say which levels there are: NaN if there are none."""
        return torch.nan


class DictionaryCodec(Codec):
    """A dictionary, its values on levels that are fitted on `seen`, its codes of validation vectors (see `Quantiser`).

    value_bits: none, or no `seen`, for values as they are, which then count as VALUE_BITS. A dictionary that gives out
    its bits itself has one measurement.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        seen: Calibration | None = None,
        value_bits: Iterable[int] = (VALUE_BITS,),
        levels: str = "lloyd",
    ):
        self.dictionary = dictionary
        self.frequency_L = {view: seen.frequency(view) for view in VIEWS} if seen else {}
        self.kind, self.k, self.latents = dictionary.kind, dictionary.k, dictionary.latents
        self.provenance = dictionary.provenance
        self.quantisers = quantisers(dictionary, seen, value_bits, levels) if seen else {}
        self.value_bits = tuple(self.quantisers) or (None,)

    def encode(self, vectors: Vectors) -> Codes:
        return vectors.encode(self.dictionary)

    def decode(self, codes: Codes, vectors: Vectors, value_bits: int | None = None) -> Tensor:
        if value_bits in self.quantisers:
            codes = self.quantisers[value_bits].quantise(codes, vectors.first_N)
        return self.dictionary.decode_sparse(codes, vectors.tokens_N)

    def mean_bits(self, counts: Tensor, value_bits: int | None = None) -> float:
        return self.dictionary.mean_bits(counts, VALUE_BITS if value_bits is None else value_bits)

    def bits_entropy(self, codes: Codes, view: str, value_bits: int | None = None) -> Tensor:
        if view not in self.frequency_L:
            return super().bits_entropy(codes, view)
        value_bits = VALUE_BITS if value_bits is None else value_bits
        return self.dictionary.bits_entropy(codes, self.frequency_L[view], value_bits).cpu()

    def table_floats(self, value_bits: int | None = None) -> float:
        return self.quantisers[value_bits].floats if value_bits in self.quantisers else torch.nan


def quantisers(
    dictionary: Dictionary, seen: Calibration, value_bits: Iterable[int], levels: str
) -> dict[int | None, Quantiser]:
    """{value_bits: Quantiser}, fewest first; {None: Quantiser} of a dictionary that gives out its bits itself."""
    asked = sorted(set(value_bits))
    if not asked:
        return {}
    values, bits_L = seen.values, dictionary.allocation_L
    cells = len(values.count_C)
    bits = {b: torch.full((cells,), b) for b in asked} if bits_L is None else {None: bits_L.cpu().repeat(2)}
    fitted = {b: Quantiser.fit(values, bits_C, seen.ends, levels) for b, bits_C in bits.items()}
    return {b: quantiser.to(dictionary.device) for b, quantiser in fitted.items()}


class Identity(Codec):
    """x_hat = x: nothing is lost."""

    def decode(self, codes: Codes, vectors: Vectors, value_bits: int | None = None) -> Tensor:
        return vectors.target_ND


class Mean(Codec):
    """x_hat = mean: nothing is known."""

    def __init__(self, mean_D: Tensor, provenance: Mapping[str, Any] | None = None):
        self.mean_D, self.provenance = mean_D, provenance or {}

    def decode(self, codes: Codes, vectors: Vectors, value_bits: int | None = None) -> Tensor:
        return self.mean_D.expand_as(vectors.target_ND)


class Position0(Codec):
    """x_hat = one mean at position 0, another elsewhere: that alone is known."""

    def __init__(self, first_D: Tensor, rest_D: Tensor, provenance: Mapping[str, Any] | None = None):
        self.first_D, self.rest_D, self.provenance = first_D, rest_D, provenance or {}

    def decode(self, codes: Codes, vectors: Vectors, value_bits: int | None = None) -> Tensor:
        first_N1 = vectors.first_N.to(vectors.target_ND.device)[:, None]
        return torch.where(first_N1, self.first_D, self.rest_D)


def references(first_D: Tensor, rest_D: Tensor, provenance: Mapping[str, Any] | None = None) -> dict[str, Codec]:
    """By their names in every table; from a site's mean at position 0 and its mean at later positions in a stream.

    provenance: of what the means are of.
    """
    codecs = (Identity(), Mean(rest_D, provenance), Position0(first_D, rest_D, provenance))
    return dict(zip(REFERENCES, codecs, strict=True))
