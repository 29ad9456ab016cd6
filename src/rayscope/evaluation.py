"""Dictionaries x sites x metrics on test documents -> one tidy table.

R rows, C context, N vectors, D site width, L latents, M non-zero codes of N vectors, G documents.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rayscope import metrics
from rayscope.activations import permutation
from rayscope.console import progress
from rayscope.dictionaries import Codes, Dictionary
from rayscope.model import LanguageModel
from rayscope.quantisation import Calibration
from rayscope.sites import Site
from rayscope.splicing import Clean, keep_first
from rayscope.text import Rows

COLUMNS = [
    "site", "dictionary", "kind", "k", "latents", "metric", "value", "low", "high", "position0", "split", "tokens",
    "trained_tokens", "seed", "quantised",
]  # fmt: skip
METRICS = [
    "fvu", "dce", "kl", "loss_recovered_zero", "loss_recovered_mean", "l2_ratio", "l0", "density", "dead", "bits",
    "bits_entropy",
]  # fmt: skip
SPLICED = ("dce", "kl", "loss_recovered_zero", "loss_recovered_mean")  # on the first splice_tokens alone
WHOLE = ("k", "latents", "trained_tokens", "seed")  # whole numbers that may be blank
LOGITS = 2**26  # elements of [R, C, V] that one pass may hold


@dataclass(frozen=True)
class Means:
    """A site's mean over training text, at position 0 and elsewhere but at special tokens: what the trivial codecs know."""

    first_D: Tensor
    rest_D: Tensor


class Meter:
    """What is summed for one codec at one site, per document, with position 0 left out and with it.

    seen: what validation text shows of a dictionary's codes; they are put on its grid, unless quantise is False.
    """

    def __init__(
        self,
        codec: Dictionary | Callable[[Tensor], Tensor],
        site: Site,
        documents: int,
        seen: Calibration | None = None,
        quantise: bool = True,
    ):
        self.codec = codec
        self.latents = codec.latents if isinstance(codec, Dictionary) else 0
        self.grid = seen.grid() if seen and quantise else None
        self.sums = {p: metrics.Sums(site.width, documents) for p in ("excluded", "included")}
        frequencies = {p: seen.frequency(p) if seen else None for p in self.sums}
        self.codes = {p: CodeSums(codec, documents, frequency_L) for p, frequency_L in frequencies.items()}
        zeros = lambda: torch.zeros(documents, dtype=torch.float64)  # noqa: E731
        self.loss = {p: zeros() for p in ("excluded", "included")}
        self.kl = {p: zeros() for p in ("excluded", "included")}

    def reconstruct(self, x_RCD: Tensor, tokens_RC: Tensor, documents_RC: Tensor) -> Tensor:
        """x_hat_RCD; its errors and codes are added to the sums."""
        x_ND, documents_N = x_RCD.flatten(0, 1), documents_RC.flatten()
        first_N = at_first(documents_RC)
        later_N = ~first_N
        if isinstance(self.codec, Dictionary):
            dictionary = self.codec.for_tokens(tokens_RC.flatten().to(x_ND.device))
            codes = dictionary.encode_sparse(x_ND)
            x_hat_ND = dictionary.decode_sparse(self.grid.quantise(codes, first_N) if self.grid else codes)
            self.codes["included"].update(codes, documents_N, torch.ones_like(later_N))
            self.codes["excluded"].update(codes, documents_N, later_N)
        else:
            x_hat_ND = self.codec(x_RCD).flatten(0, 1)
        self.sums["included"].update(x_ND, x_hat_ND, documents_N)
        self.sums["excluded"].update(x_ND[later_N], x_hat_ND[later_N], documents_N[later_N])
        return x_hat_ND.view_as(x_RCD)


class CodeSums:
    """Counts of non-zero codes, per document and per latent, how many vectors have each count, and bits_entropy.

    frequency_L: each latent's, for bits_entropy, which is not summed without.
    """

    def __init__(self, codec: Dictionary | Callable[[Tensor], Tensor], documents: int, frequency_L: Tensor | None):
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
            about = (self.codec.signed, self.codec.fixed_support, self.codec.dense)
            bits_N = metrics.bits_entropy(codes.indices_M, codes.offsets, self.frequency_L, *about).cpu()
            self.entropy_G.index_add_(0, documents_N[chosen_N], bits_N[chosen_N])


@dataclass(frozen=True)
class Measurement:
    """The sums of every codec of every site over the same documents: any statistic of any resample of them follows."""

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

    def statistics(self, site: Site, name: str, position0: str = "excluded") -> dict[str, Callable[[Tensor], Tensor]]:
        """{metric: weights_BG -> [B]} of a codec, over resamples of documents."""
        meter = self.meters[site][name]
        sums, codes, loss_G = meter.sums[position0], meter.codes[position0], meter.loss[position0]
        ratio = metrics.ratio_of_sums
        ablated = {"zero": self.zero_G[site, position0], "mean": self.meters[site]["mean"].loss[position0]}
        found = {
            "fvu": sums.fvu,
            "dce": ratio(loss_G - self.clean_G, self.predicted_G),
            "kl": ratio(meter.kl[position0], self.predicted_G),
            **{
                f"loss_recovered_{how}": ratio(ablated_G - loss_G, ablated_G - self.clean_G)
                for how, ablated_G in ablated.items()
            },
            "l2_ratio": sums.l2_ratio,
        }
        if meter.latents:
            found |= {
                "l0": ratio(codes.active_G, codes.vectors_G),
                "density": ratio(codes.active_G / meter.latents, codes.vectors_G),
                "bits_entropy": ratio(codes.entropy_G, codes.vectors_G),
            }
        return found

    def table(self, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
        """One row for each site, codec, metric and position0; blank where a codec has no such metric.

        Intervals are the central 95% over `draws` bootstraps of documents.
        """
        weights_BG = metrics.bootstrap_weights(self.documents, draws, seed)
        ones, blank, rows = torch.ones(1, self.documents, dtype=torch.float64), float("nan"), []
        for site, named in self.meters.items():
            for name, meter in named.items():
                for position0 in ("excluded", "included"):
                    found = {
                        metric: (statistic(ones).item(), *metrics.interval(statistic, weights_BG))
                        for metric, statistic in self.statistics(site, name, position0).items()
                    }
                    if isinstance(meter.codec, Dictionary):
                        codes = meter.codes[position0]
                        found["dead"] = ((codes.fired_L == 0).double().mean().item(), blank, blank)
                        found["bits"] = (bits_per_token(meter.codec, codes), blank, blank)
                    for metric in METRICS:
                        used = self.splice_tokens if metric in SPLICED else self.tokens
                        about = (position0, self.split, used, *trained(meter.codec), meter.grid is not None)
                        numbers = found.get(metric, (blank, blank, blank))
                        rows.append([site.hook, name, *describe(meter.codec), metric, *numbers, *about])
        return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(WHOLE, "Int64"))

    def densities(self) -> pd.DataFrame:
        """site, dictionary, latent, density (position 0 left out)."""
        columns, tables = ["site", "dictionary", "latent", "density"], []
        for site, named in self.meters.items():
            for name, meter in named.items():
                if meter.latents:
                    codes = meter.codes["excluded"]
                    density = (codes.fired_L.double() / codes.vectors_G.sum()).numpy()
                    about = {"site": site.hook, "dictionary": name, "latent": range(meter.latents)}
                    tables.append(pd.DataFrame({**about, "density": density}))
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def measure(
    model: LanguageModel,
    rows: Rows,
    dictionaries: dict[Site, dict[str, Dictionary]],
    means: dict[str, Means],
    validation: Iterable[tuple[Tensor, dict[str, Tensor]]],
    *,
    tokens: int,
    splice_tokens: int,
    quantise: bool = True,
    seed: int = 0,
    split: str = "test",
) -> Measurement:
    """Every dictionary, and the identity, mean and position-0 codecs, at each site.

    Reconstruction is measured on `tokens` of the split, loss and KL on the first `splice_tokens` of those, all in fp32.

    validation: (tokens_RC, {site.key: x_RCD}) of whole rows, on which each latent's range and frequency are read; a
    dictionary is measured with its codes on 256 levels of that range, or, without `quantise`, as they are.
    """
    seen = calibrate(dictionaries, validation)
    context = rows.tokens.shape[1]
    chosen = permutation(len(rows), seed, "evaluation", 0).numpy()[: max(1, tokens // context)]
    spliced_rows = min(len(chosen), max(1, splice_tokens // context))
    numbers, documents = np.unique(rows.documents[chosen], return_inverse=True)
    documents_RC = torch.from_numpy(documents.reshape(len(chosen), context))
    tokens_RC = torch.from_numpy(rows.tokens[chosen].astype(np.int64))
    meters = {
        site: {name: Meter(d, site, len(numbers), seen[site][name], quantise) for name, d in named.items()}
        for site, named in dictionaries.items()
    }
    for site in dictionaries:
        for name, codec in codecs(means[site.key]).items():
            meters[site][name] = Meter(codec, site, len(numbers))
    clean_G, predicted_G = torch.zeros(2, len(numbers), dtype=torch.float64)
    zero_G = {
        (site, p): torch.zeros(len(numbers), dtype=torch.float64) for site in meters for p in ("excluded", "included")
    }
    sites = list(dictionaries)
    step = max(1, LOGITS // (context * model.vocabulary))
    every = sum(map(len, meters.values()))
    with progress("evaluating", every * len(chosen) * context) as advance, torch.no_grad():
        pieces = [*range(0, spliced_rows, step), *range(spliced_rows, len(chosen), step), len(chosen)]
        for start, stop in pairwise(pieces):
            part, ids = tokens_RC[start:stop], documents_RC[start:stop]
            if start >= spliced_rows:
                found = model.activations(part.to(model.device), sites)
                for site, meter in every_meter(meters):
                    meter.reconstruct(found[site.key], part, ids)
                    advance(part.numel())
                continue
            clean = Clean.run(model, part, sites)
            targets = ids[:, 1:].flatten()
            add(clean_G, targets, clean.loss_RC)
            add(predicted_G, targets, torch.ones_like(clean.loss_RC))
            for site in sites:
                nothing = torch.zeros_like(clean.activations[site.key])
                for position0, loss, _ in both(clean, site, nothing):
                    add(zero_G[site, position0], targets, loss)
            for site, meter in every_meter(meters):
                x_hat = meter.reconstruct(clean.activations[site.key], part, ids)
                for position0, loss, divergence in both(clean, site, x_hat):
                    add(meter.loss[position0], targets, loss)
                    add(meter.kl[position0], targets, divergence)
                advance(part.numel())
    about = (split, len(chosen) * context, spliced_rows * context)
    return Measurement(meters, clean_G, zero_G, predicted_G, *about)


@torch.no_grad()
def calibrate(
    dictionaries: dict[Site, dict[str, Dictionary]], validation: Iterable[tuple[Tensor, dict[str, Tensor]]]
) -> dict[Site, dict[str, Calibration]]:
    """What whole rows of validation text show of every dictionary's codes."""
    seen = {
        site: {n: Calibration(d.latents, d.device) for n, d in named.items()} for site, named in dictionaries.items()
    }
    for tokens_RC, activations in validation:
        first_N = at_first(tokens_RC)
        for site, named in dictionaries.items():
            for name, dictionary in named.items():
                x_ND = activations[site.key].flatten(0, 1)
                told = dictionary.for_tokens(tokens_RC.flatten().to(x_ND.device))
                seen[site][name].update(told.encode_sparse(x_ND), first_N)
    return seen


def at_first(tokens_RC: Tensor) -> Tensor:
    """(N): which of the vectors of whole rows are at position 0."""
    return (torch.arange(tokens_RC.shape[1]) == 0).repeat(len(tokens_RC))


def every_meter(meters: dict[Site, dict[str, Meter]]) -> Iterator[tuple[Site, Meter]]:
    for site, named in meters.items():
        for meter in named.values():
            yield site, meter


def codecs(means: Means) -> dict[str, Callable[[Tensor], Tensor]]:
    """The rows that a table needs to be read: what costs nothing, what knows nothing, what knows only position 0."""

    def position0(x_RCD: Tensor) -> Tensor:
        x_hat = means.rest_D.expand_as(x_RCD).clone()
        x_hat[:, 0] = means.first_D
        return x_hat

    return {"identity": lambda x: x, "mean": lambda x: means.rest_D.expand_as(x), "position0": position0}


def both(clean: Clean, site: Site, x_hat_RCD: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(position0, loss, KL): position 0 keeps its own activation (excluded), or is spliced too (included)."""
    yield "excluded", *clean.spliced(site, keep_first(clean.activations[site.key], x_hat_RCD))
    yield "included", *clean.spliced(site, x_hat_RCD)


def add(sums_G: Tensor, documents_N: Tensor, values: Tensor) -> None:
    sums_G.index_add_(0, documents_N, values.flatten().double().cpu())


def bits_per_token(dictionary: Dictionary, codes: CodeSums | None = None) -> float:
    """metrics.bits of a dictionary: of its k, or, where the number of codes varies, the mean over its own counts."""
    about = (dictionary.signed, dictionary.fixed_support, dictionary.dense)
    if dictionary.adaptive and codes is not None:
        k = (torch.arange(len(codes.counts), dtype=torch.float64) - dictionary.dense).clamp(min=0)
        per_count = torch.as_tensor(metrics.bits(dictionary.latents, k, *about))
        return ((per_count * codes.counts).sum() / codes.counts.sum()).item()
    return float(metrics.bits(dictionary.latents, dictionary.k, *about))


def describe(codec) -> tuple:
    """kind, k, latents."""
    return (codec.kind, codec.k, codec.latents) if isinstance(codec, Dictionary) else ("codec", None, None)


def trained(codec) -> tuple:
    """trained_tokens, seed."""
    known = codec.provenance if isinstance(codec, Dictionary) else {}
    return known.get("tokens"), known.get("seed")
