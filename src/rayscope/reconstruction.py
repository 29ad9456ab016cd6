"""Reconstruction without a model: fvu, l0 and bits of dictionaries on any batches, such as a surrogate's or a planted world's.

N vectors, L latents, G documents.
"""

from collections.abc import Iterable
from typing import Protocol

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from rayscope import metrics
from rayscope.activations import Batch
from rayscope.dictionaries import Codes, Dictionary
from rayscope.evaluation import CodeSums, bits_per_token, describe, trained
from rayscope.sites import Site

COLUMNS = [
    "site", "dictionary", "kind", "k", "latents", "metric", "value", "low", "high", "tokens", "trained_tokens", "seed",
]  # fmt: skip


class Quantiser(Protocol):
    def quantise(self, codes: Codes) -> Codes: ...


def reconstruction(
    dictionaries: dict[Site, dict[str, Dictionary]],
    batches: Iterable[Batch],
    *,
    quantisers: dict[Site, dict[str, Quantiser]] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """A row for each site, dictionary and metric: fvu, l2_ratio, l0 (with the central 95% over bootstraps of documents),
    dead and bits, of one pass over the batches, each dictionary on its own device.

    quantisers: a dictionary that has one is measured with its codes as the quantiser gives them back.
    """
    sums = {s: {n: metrics.Sums(s.width, 0) for n in named} for s, named in dictionaries.items()}
    codes = {s: {n: CodeSums(d.latents, 0) for n, d in named.items()} for s, named in dictionaries.items()}
    place: dict[int, int] = {}
    tokens = 0
    for batch in batches:
        documents_N = torch.tensor([place.setdefault(document, len(place)) for document in batch.documents_N.tolist()])
        tokens += len(batch)
        for site, named in dictionaries.items():
            for name, dictionary in named.items():
                x_ND = batch.activations[site.key].to(dictionary.device)
                found = dictionary.encode_sparse(x_ND)
                quantiser = (quantisers or {}).get(site, {}).get(name)
                found = quantiser.quantise(found) if quantiser else found
                for each in (sums[site][name], codes[site][name]):
                    grow(each, len(place))
                sums[site][name].update(x_ND, dictionary.decode_sparse(found), documents_N)
                codes[site][name].update(found, documents_N, torch.ones(len(batch), dtype=torch.bool))
    if not tokens:
        raise ValueError("batches: none was given; reconstruction needs at least one")
    weights = metrics.bootstrap_weights(len(place), draws, seed)
    whole = torch.ones(1, len(place), dtype=torch.float64)
    table = []
    for site, named in dictionaries.items():
        for name, dictionary in named.items():
            counted = codes[site][name]
            statistics = {
                "fvu": sums[site][name].fvu,
                "l2_ratio": sums[site][name].l2_ratio,
                "l0": metrics.ratio_of_sums(counted.active_G, counted.vectors_G),
            }
            rows: list[tuple] = [(m, f(whole).item(), *metrics.interval(f, weights)) for m, f in statistics.items()]
            rows.append(("dead", (counted.fired_L == 0).double().mean().item(), None, None))
            rows.append(("bits", bits_per_token(dictionary, counted), None, None))
            about = (site.hook, name, *describe(dictionary))
            table += [(*about, *row, tokens, *trained(dictionary)) for row in rows]
    whole_numbers = dict.fromkeys(("trained_tokens", "seed"), "Int64")
    return pd.DataFrame(table, columns=COLUMNS).astype({**whole_numbers, "low": float, "high": float})


def grow(sums: metrics.Sums | CodeSums, documents: int) -> None:
    """Room for documents met later: every tensor whose first axis is G is lengthened with zeros."""
    for name, value in vars(sums).items():
        if isinstance(value, Tensor) and name.rpartition("_")[2].startswith("G"):
            padding = [0, 0] * (value.ndim - 1) + [0, documents - len(value)]
            setattr(sums, name, F.pad(value, padding))
