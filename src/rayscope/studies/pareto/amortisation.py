"""The amortisation gap: how much better a search codes with a dictionary's directions than its encoder does."""

from collections.abc import Sequence

import torch

from rayscope.dictionaries import recoded
from rayscope.evaluation.entry import Entry
from rayscope.evaluation.reconstruction import reconstruct
from rayscope.streams.source import Source
from rayscope.streams.stream import Batch
from rayscope.studies.arms import lent


def amortisation(
    source: Source, learned: Sequence[Entry], tokens: int, k: int, seed: int
) -> dict[Entry, dict[str, float]]:
    """{entry: {gap_omp, gap_fista, gap_tokens}}: FVU of its own codes less that of the search's, on test vectors.

    The search spends as many codes and knows as much as the encoder (see `Recoded`). FISTA, which is slow, for those of
    this k and seed alone.
    """
    sites = list(dict.fromkeys(entry.site for entry in learned))
    stream = source.stream("test", sites, max(tokens, source.batch_size), "fp32")
    test = Batch.join(stream).take(torch.arange(min(tokens, len(stream) * stream.batch_size)))
    ones = torch.ones(1, len(test.documents_N.unique()), dtype=torch.float64)
    gaps = {}
    for entry in learned:
        coders = ["omp", "fista"] if (entry.k, entry.seed) == (k, seed) else ["omp"]
        with lent([entry.dictionary], source.model.device):
            coded = {"own": entry.dictionary, **{coder: recoded(entry.dictionary, coder) for coder in coders}}
            meters = reconstruct({entry.site: coded}, test)[entry.site]
        fvu = {name: meter.statistics()["fvu"](ones).item() for name, meter in meters.items()}
        gaps[entry] = {f"gap_{coder}": fvu["own"] - fvu[coder] for coder in coders} | {"gap_tokens": len(test)}
    return gaps
