"""Reconstruction without a model: dictionaries on held-out vectors, such as a surrogate's or a planted world's.

N vectors, G documents.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

import torch

from rayscope.dictionaries import Dictionary
from rayscope.dictionaries.code_length import VALUE_BITS
from rayscope.evaluation.calibration import calibrate_codes
from rayscope.evaluation.codecs import DictionaryCodec
from rayscope.evaluation.meter import Meter, Variance
from rayscope.model.sites import Site
from rayscope.streams.stream import Batch

Key = TypeVar("Key", bound=Hashable)
CHUNK = 4096  # vectors encoded at a time


@torch.no_grad()
def reconstruct(
    dictionaries: Mapping[Site, Mapping[Key, Dictionary]],
    held_out: Batch,
    validation: Batch | None = None,
    value_bits: Iterable[int] = (VALUE_BITS,),
) -> dict[Site, dict[Key, Meter]]:
    """{site: {key: Meter}} over the held-out vectors; documents in order of their number.

    validation: vectors on which the levels of values and each latent's frequency are fitted; without them codes are
    measured as they are, as with no value_bits, and bits_entropy is not known.
    """
    numbers, documents_N = held_out.documents_N.unique(return_inverse=True)
    held_out = replace(held_out, documents_N=documents_N)
    seen = calibrate_codes(dictionaries, pieces(validation)) if validation is not None else {}
    meters: dict[Site, dict[Key, Meter]] = {}
    for site, named in dictionaries.items():
        variance, known = Variance(site.output.width, len(numbers)), seen.get(site, {})
        meters[site] = {
            key: Meter(DictionaryCodec(dictionary, known.get(key), value_bits), variance)
            for key, dictionary in named.items()
        }
        for part in pieces(held_out):
            vectors = part.at(site)
            variance.update(vectors)
            for key, meter in meters[site].items():
                meter.update(vectors.to(named[key].device))
    return meters


def pieces(batch: Batch) -> Iterator[Batch]:
    for chosen in torch.arange(len(batch)).split(CHUNK):
        yield batch.take(chosen)
