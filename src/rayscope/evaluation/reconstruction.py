"""Reconstruction without a model: dictionaries on held-out vectors, such as a surrogate's or a planted world's.

N vectors, G documents.
"""

from collections.abc import Hashable, Mapping
from typing import TypeVar

import torch

from rayscope.dictionaries import Dictionary
from rayscope.evaluation.meter import Meter, Spreads
from rayscope.evaluation.quantisation import Calibration
from rayscope.model.sites import Site
from rayscope.streams.stream import Batch

Key = TypeVar("Key", bound=Hashable)
CHUNK = 4096  # vectors encoded at a time


@torch.no_grad()
def reconstruct(
    dictionaries: Mapping[Site, Mapping[Key, Dictionary]],
    held_out: Batch,
    validation: Batch | None = None,
    quantise: bool = True,
) -> dict[Site, dict[Key, Meter]]:
    """{site: {key: Meter}} over the held-out vectors, none of them at position 0; documents in order of their number.

    validation: vectors on which each latent's range and frequency are read; without them codes are measured as they
    are, as with quantise False, and bits_entropy is not known.
    """
    numbers, documents_N = held_out.documents_N.unique(return_inverse=True)
    meters: dict[Site, dict[Key, Meter]] = {}
    for site, named in dictionaries.items():
        meters[site], spreads = {}, Spreads(site.width, len(numbers))
        for part, ids_N in zip(pieces(held_out), documents_N.split(CHUNK), strict=True):
            spreads.update(part.activations[site.key], ids_N, nowhere(part))
        for key, dictionary in named.items():
            seen = None
            if validation is not None:
                seen = Calibration(dictionary.latents, dictionary.device)
                for part in pieces(validation):
                    x_ND = part.activations[site.key].to(dictionary.device)
                    seen.update(dictionary.encode_sparse(x_ND, part.tokens_N), nowhere(part))
            meter = Meter(dictionary, spreads, seen, quantise)
            for part, ids_N in zip(pieces(held_out), documents_N.split(CHUNK), strict=True):
                x_ND = part.activations[site.key].to(dictionary.device)
                meter.reconstruct(x_ND, part.tokens_N, ids_N, nowhere(part))
            meters[site][key] = meter
    return meters


def pieces(batch: Batch) -> list[Batch]:
    return [batch.take(chosen) for chosen in torch.arange(len(batch)).split(CHUNK)]


def nowhere(batch: Batch) -> torch.Tensor:
    """A stream's vectors: none is at position 0."""
    return torch.zeros(len(batch), dtype=torch.bool)
