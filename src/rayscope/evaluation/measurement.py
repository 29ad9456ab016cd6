"""Dictionaries x sites x metrics on test documents -> one tidy table.

R rows, C context, N vectors, D site width, L latents, M non-zero codes of N vectors, G documents.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rayscope.console import progress
from rayscope.dictionaries import Dictionary
from rayscope.evaluation import metrics
from rayscope.evaluation.entry import Entry, by_site
from rayscope.evaluation.meter import Meter, Spreads
from rayscope.evaluation.quantisation import Calibration
from rayscope.model import LanguageModel
from rayscope.model.sites import Site
from rayscope.model.splicing import CleanPass
from rayscope.streams import positions
from rayscope.streams.positions import VIEWS
from rayscope.streams.seeding import permutation
from rayscope.text import Rows

COLUMNS = [
    "site", "dictionary", "method", "role", "kind", "k", "latents", "metric", "value", "low", "high", "position0",
    "split", "tokens", "trained_tokens", "seed", "quantised", "documents",
]  # fmt: skip
METRICS = [
    "fvu", "dce", "kl", "loss_recovered_zero", "loss_recovered_mean", "l2_ratio", "l0", "density", "dead", "bits",
    "bits_entropy",
]  # fmt: skip
REFERENCES = ("identity", "mean", "position0")  # rows that a table needs to be read: see `reference_entries`
SPLICED = ("dce", "kl", "loss_recovered_zero", "loss_recovered_mean")  # on the first splice_tokens alone
WHOLE = ("k", "latents", "trained_tokens", "seed")  # whole numbers that may be blank
LOGITS = 2**26  # elements of [R, C, V] that one pass may hold


@dataclass(frozen=True)
class Means:
    """A site's mean over training text, at position 0 and elsewhere but at special tokens: what the trivial codecs know."""

    first_D: Tensor
    rest_D: Tensor


@dataclass(frozen=True)
class Measurement:
    """The sums of every codec of every site over the same documents: any statistic of any resample of them follows.

    entries: in the order of the table, the reference codecs of each site last.
    """

    entries: Sequence[Entry]
    meters: dict[Site, dict[str, Meter]]
    clean_G: Tensor  # summed loss, clean and with the site's activations at zero, and the number of predictions
    zero_G: dict[tuple[Site, str], Tensor]
    predicted_G: Tensor
    split: str
    tokens: int
    splice_tokens: int

    @property
    def documents(self) -> int:
        return len(self.clean_G)

    @property
    def spliced_documents(self) -> int:
        """Of how many a token was predicted."""
        return int((self.predicted_G > 0).sum())

    def meter(self, entry: Entry) -> Meter:
        return self.meters[entry.site][entry.name]

    def statistics(self, entry: Entry, position0: str = "excluded") -> dict[str, Callable[[Tensor], Tensor]]:
        """{metric: weights_BG -> [B]} over resamples of documents."""
        site, meter, ratio = entry.site, self.meter(entry), metrics.ratio_of_sums
        loss_G = meter.loss[position0]
        ablated = {"zero": self.zero_G[site, position0], "mean": self.meters[site]["mean"].loss[position0]}
        return {
            **meter.statistics(position0),
            "dce": ratio(loss_G - self.clean_G, self.predicted_G),
            "kl": ratio(meter.kl[position0], self.predicted_G),
            **{
                f"loss_recovered_{how}": ratio(ablated_G - loss_G, ablated_G - self.clean_G)
                for how, ablated_G in ablated.items()
            },
        }

    def table(self, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
        """One row for each entry, metric and position0; blank where a codec has no such metric.

        Intervals are the central 95% over `draws` bootstraps of documents, blank for fewer documents than `metrics.interval`
        takes. documents: those that have a vector, of what is spliced those that have a prediction.
        """
        weights_BG, spliced = metrics.bootstrap_weights(self.documents, draws, seed), self.spliced_documents
        ones, blank, rows = torch.ones(1, self.documents, dtype=torch.float64), float("nan"), []
        for entry in self.entries:
            meter, about = self.meter(entry), described(entry)
            for position0 in VIEWS:
                with_vectors = int((meter.sums[position0].spread.count_G > 0).sum())
                documents = {metric: spliced if metric in SPLICED else with_vectors for metric in METRICS}
                numbers = {
                    metric: (statistic(ones).item(), *metrics.interval(statistic, weights_BG, documents[metric]))
                    for metric, statistic in self.statistics(entry, position0).items()
                }
                numbers |= {metric: (value, blank, blank) for metric, value in meter.whole(position0).items()}
                for metric in METRICS:
                    value, low, high = numbers.get(metric, (blank, blank, blank))
                    row = {"metric": metric, "value": value, "low": low, "high": high, "position0": position0}
                    row |= {"split": self.split, "tokens": self.splice_tokens if metric in SPLICED else self.tokens}
                    row |= {"quantised": meter.grid is not None, "documents": documents[metric]}
                    rows.append(about | row)
        return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(WHOLE, "Int64"))

    def densities(self) -> pd.DataFrame:
        """site, dictionary, latent, density (position 0 left out)."""
        columns, tables = ["site", "dictionary", "latent", "density"], []
        for entry in self.entries:
            meter = self.meter(entry)
            if meter.latents:
                codes = meter.codes["excluded"]
                density = (codes.fired_L.double() / codes.vectors_G.sum()).numpy()
                about = {"site": entry.site.hook, "dictionary": entry.name, "latent": range(meter.latents)}
                tables.append(pd.DataFrame({**about, "density": density}))
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def check_options(
    *, tokens: int, splice_tokens: int, validation_tokens: int, quantise: bool, draws: int, context: int = 1
) -> None:
    """Raises ValueError for an option of `evaluation` from which no number could be computed."""
    for name, value in (("tokens", tokens), ("splice_tokens", splice_tokens)):
        if value < context:
            raise ValueError(
                f"evaluation.{name}={value} is less than one row of {context} token{'s' * (context > 1)}; raise it"
            )
    if validation_tokens < 1 and (quantise or validation_tokens < 0):
        raise ValueError(
            f"evaluation.validation_tokens={validation_tokens}: codes are put on 256 levels of the range that they have there; "
            "at least 1, or with evaluation.quantise=false 0"
        )
    if draws < 0 or 0 < draws < metrics.FEWEST_DRAWS:
        raise ValueError(
            f"evaluation.draws={draws}: at least {metrics.FEWEST_DRAWS} for intervals, or 0 for a table without any"
        )


def measure(
    model: LanguageModel,
    rows: Rows,
    entries: Sequence[Entry],
    means: dict[str, Means],
    validation: Iterable[tuple[Tensor, dict[str, Tensor]]],
    *,
    tokens: int,
    splice_tokens: int,
    quantise: bool = True,
    seed: int = 0,
    split: str = "test",
) -> Measurement:
    """Every entry, and the identity, mean and position-0 codecs, at each site.

    Reconstruction is measured on `tokens` of the split, loss and KL on the first `splice_tokens` of those, all in fp32.
    Special tokens, on which nothing is trained, are left out of both (see `positions.coded`): they keep their activations.

    validation: (tokens_RC, {site.key: x_RCD}) of whole rows, on which each latent's range and frequency are read; a
    dictionary is measured with its codes on 256 levels of that range, or, without `quantise`, as they are.
    """
    special, context = model.special_ids, rows.tokens.shape[1]
    for name, value in (("tokens", tokens), ("splice_tokens", splice_tokens)):
        if value < context:
            raise ValueError(f"{name}={value} is less than one row of {context}; raise it")
    dictionaries = by_site(entries)
    seen = calibrate(dictionaries, validation, special)
    chosen = rows_read(rows, tokens, seed)
    spliced_rows = min(len(chosen), splice_tokens // context)
    numbers, documents = np.unique(rows.documents[chosen], return_inverse=True)
    documents_RC = torch.from_numpy(documents.reshape(len(chosen), context))
    tokens_RC = torch.from_numpy(rows.tokens[chosen].astype(np.int64))
    spreads = {site: Spreads(site.width, len(numbers)) for site in dictionaries}
    meters = {
        site: {name: Meter(d, spreads[site], seen[site][name], quantise) for name, d in named.items()}
        for site, named in dictionaries.items()
    }
    rows_of_table = []
    for site in dictionaries:
        references = reference_entries(site, means[site.key])
        meters[site] |= {entry.name: Meter(entry.dictionary, spreads[site]) for entry in references}
        rows_of_table += [*(entry for entry in entries if entry.site == site), *references]
    clean_G, predicted_G = torch.zeros(2, len(numbers), dtype=torch.float64)
    zero_G = {(site, p): torch.zeros(len(numbers), dtype=torch.float64) for site in meters for p in VIEWS}
    sites = list(dictionaries)
    step = max(1, LOGITS // (context * model.vocabulary))
    every = sum(map(len, meters.values()))
    with progress("evaluating", every * len(chosen) * context) as advance, torch.no_grad():
        pieces = [*range(0, spliced_rows, step), *range(spliced_rows, len(chosen), step), len(chosen)]
        for start, stop in pairwise(pieces):
            part, ids = tokens_RC[start:stop], documents_RC[start:stop]
            coded_N = positions.coded(part, special).flatten()
            labels = part.flatten()[coded_N], ids.flatten()[coded_N], positions.first(part).flatten()[coded_N]
            if start >= spliced_rows:
                found, clean = model.activations(part.to(model.device), sites), None
            else:
                clean = CleanPass.run(model, part, sites)
                found, targets = clean.activations, ids[:, 1:].flatten()
                add(clean_G, targets, clean.loss_RC)
                add(predicted_G, targets, torch.ones_like(clean.loss_RC))
            coded_N = coded_N.to(model.device)
            for site, named in meters.items():
                x_RCD = found[site.key]
                x_ND = x_RCD.flatten(0, 1)[coded_N]
                spreads[site].update(x_ND, *labels[1:])
                if clean:
                    nothing = put(x_RCD, coded_N, torch.zeros_like(x_ND))
                    for position0, loss, _ in both(clean, site, nothing):
                        add(zero_G[site, position0], targets, loss)
                for meter in named.values():
                    x_hat_ND = meter.reconstruct(x_ND, *labels)
                    if clean:
                        for position0, loss, divergence in both(clean, site, put(x_RCD, coded_N, x_hat_ND)):
                            add(meter.loss[position0], targets, loss)
                            add(meter.kl[position0], targets, divergence)
                    advance(part.numel())
    about = (split, len(chosen) * context, spliced_rows * context)
    return Measurement(rows_of_table, meters, clean_G, zero_G, predicted_G, *about)


def rows_read(rows: Rows, tokens: int, seed: int) -> np.ndarray:
    """Which rows of a split are measured, in their order: of fewer tokens, the first of these."""
    return permutation(len(rows), seed, "evaluation", 0).numpy()[: tokens // rows.tokens.shape[1]]


def documents_predicted(rows: Rows, tokens: int, seed: int) -> int:
    """Of how many documents a token is predicted in the rows that are measured (see `Measurement.spliced_documents`)."""
    return len(np.unique(rows.documents[rows_read(rows, tokens, seed)][:, 1:]))


@torch.no_grad()
def calibrate(
    dictionaries: dict[Site, dict[str, Dictionary]],
    validation: Iterable[tuple[Tensor, dict[str, Tensor]]],
    special: Sequence[int],
) -> dict[Site, dict[str, Calibration]]:
    """What whole rows of validation text show of every dictionary's codes, but for those of special tokens."""
    seen = {
        site: {n: Calibration(d.latents, d.device) for n, d in named.items()} for site, named in dictionaries.items()
    }
    for tokens_RC, activations in validation:
        coded_N = positions.coded(tokens_RC, special).flatten()
        tokens_N, first_N = tokens_RC.flatten()[coded_N], positions.first(tokens_RC).flatten()[coded_N]
        for site, named in dictionaries.items():
            x_ND = activations[site.key].flatten(0, 1)
            x_ND = x_ND[coded_N.to(x_ND.device)]
            for name, dictionary in named.items():
                seen[site][name].update(dictionary.encode_sparse(x_ND, tokens_N), first_N)
    return seen


def put(x_RCD: Tensor, coded_N: Tensor, x_hat_ND: Tensor) -> Tensor:
    """The rows with what was coded in its place."""
    spliced_RCD = x_RCD.clone(memory_format=torch.contiguous_format)
    spliced_RCD.view(-1, x_RCD.shape[-1])[coded_N] = x_hat_ND.to(x_RCD.dtype)
    return spliced_RCD


def reference_entries(site: Site, means: Means) -> list[Entry]:
    """Reference codecs: identity (perfect), the mean (no information), the mean at position 0 and elsewhere."""

    def position0(x_ND: Tensor, first_N: Tensor) -> Tensor:
        return torch.where(first_N.to(x_ND.device)[:, None], means.first_D, means.rest_D)

    codecs: tuple[Any, ...] = (lambda x, _: x, lambda x, _: means.rest_D.expand_as(x), position0)
    return [
        Entry(site, name, "reference", None, None, codec, name) for name, codec in zip(REFERENCES, codecs, strict=True)
    ]


def both(clean: CleanPass, site: Site, x_hat_RCD: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(position0, loss, KL): position 0 keeps its own activation (excluded), or is spliced too (included)."""
    yield "excluded", *clean.spliced(site, positions.keep_first(clean.activations[site.key], x_hat_RCD))
    yield "included", *clean.spliced(site, x_hat_RCD)


def add(sums_G: Tensor, documents_N: Tensor, values: Tensor) -> None:
    sums_G.index_add_(0, documents_N, values.flatten().double().cpu())


def described(entry: Entry) -> dict[str, Any]:
    """The columns that are the same in all of an entry's rows."""
    columns = {"site": entry.site.hook, "dictionary": entry.name, "method": entry.method, "role": entry.role}
    columns |= {"kind": "codec", "k": entry.k, "latents": None, "seed": entry.seed, "trained_tokens": None}
    if isinstance(entry.dictionary, Dictionary):
        columns |= {"kind": entry.dictionary.kind, "latents": entry.dictionary.latents}
        columns |= {"trained_tokens": entry.dictionary.provenance.get("tokens")}
    return columns
