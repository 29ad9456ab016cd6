"""Comparison: the dictionaries of each site beside the baselines at equal bits."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from rayscope.baselines import SiteFit, fit_sites
from rayscope.dictionaries import Dictionary
from rayscope.evaluation.measurement import Means
from rayscope.model.sites import Site
from rayscope.streams.seeding import permutation
from rayscope.streams.source import Source


@dataclass(frozen=True)
class Baseline:
    """fit: SiteFit -> Dictionary | None; budgets: `all` the ray dictionaries' bits, or those at the `headline` k.

    max_k: the most codes that the method has (k-means: 1). A budget above that gets this k, once, at its own fewer bits.
    """

    fit: Callable[[SiteFit], Dictionary | None]
    budgets: str = "all"
    max_k: int | None = None

    def __post_init__(self):
        if self.budgets not in ("all", "headline"):
            raise ValueError(f"baselines: budgets={self.budgets}; all or headline")
        if self.max_k is not None and self.max_k < 1:
            raise ValueError(f"baselines: max_k={self.max_k} must be at least 1")


def baselines_at_equal_bits(
    fit: SiteFit, baselines: dict[str, Baseline], learned: dict[str, Dictionary], headline_k: int, fitted_tokens: int
) -> dict[str, Dictionary]:
    """Each baseline at the least k that costs at least the bits of a learned dictionary, named `<name>_k<k>`.

    The budgets are those of rays of a fixed k (of any dictionary, where there are none): the few bits by which a baseline
    is above are its advantage.
    """
    every = sorted({(d.k, d.bits()) for d in plain_rays(learned.values())})
    chosen = {"all": every, "headline": [(k, bits) for k, bits in every if k == headline_k] or every}
    found: dict[str, Dictionary] = {}
    for name, baseline in baselines.items():
        dictionary = baseline.fit(fit)
        if dictionary is None:
            continue
        for _, bits in chosen[baseline.budgets]:
            k = dictionary.k_of_bits(bits)
            k = min(k, baseline.max_k or k)
            if f"{name}_k{k}" in found:
                continue
            at_k = dictionary.with_k(k)
            at_k.provenance.setdefault("tokens", fitted_tokens)
            found[f"{name}_k{k}"] = at_k
    return found


@dataclass(frozen=True)
class Comparison:
    """What is compared at each site: its dictionaries, and all of them after the baselines at equal bits.

    fitted: what the baselines were fitted from, {site.key: SiteFit}; headline_k: the k at which single budgets are read.
    """

    source: Source
    learned: dict[Site, dict[str, Dictionary]]
    all: dict[Site, dict[str, Dictionary]]
    fitted: dict[str, SiteFit]
    headline_k: int


def compare(
    source: Source,
    learned: dict[Site, dict[str, Dictionary]],
    baselines: dict[str, Baseline],
    headline_k: int,
    fit_tokens: int,
    sample: int = 0,
    option: str = "baselines.fit_tokens",
) -> Comparison:
    """sample: how many of the fit_tokens' vectors stay in memory (4 bytes x width each, a site) for baselines that need them;
    option: what the user calls `fit_tokens`."""
    sites, device = list(learned), source.model.device
    stream = source.stream("train", sites, fit_tokens, "fp32", option)
    fitted = fit_sites(source.model, sites, stream, sample, source.seed)
    both = {}
    for site, named in learned.items():
        found = baselines_at_equal_bits(fitted[site.key], baselines, named, headline_k, fit_tokens)
        if same := sorted(found.keys() & named.keys()):
            raise ValueError(f"{same[0]} at {site.hook} is a baseline's name too; rename the dictionary's folder")
        both[site] = {name: d.to(device) for name, d in found.items()} | named
    return Comparison(source, learned, both, fitted, headline_k)


def plain_rays(dictionaries: Iterable[Dictionary]) -> list[Dictionary]:
    """Unsigned dictionaries of a fixed k without side information: their bits are the budgets. All, if there are none."""
    dictionaries = list(dictionaries)
    return [d for d in dictionaries if d.plain and not d.signed] or dictionaries


def headline_budget(dictionaries: Iterable[Dictionary], headline_k: int) -> float:
    """Bits per token of the rays (of any, where there are none) whose k is nearest to the headline."""
    return min(plain_rays(dictionaries), key=lambda d: abs(d.k - headline_k)).bits()


def position_means(compared: Comparison, rows: int = 64) -> dict[str, Means]:
    """What the mean codecs put in place of a site's activations: {site.key: Means}."""
    source, sites, device = compared.source, list(compared.all), compared.source.model.device
    chosen = permutation(len(source.text.train), source.seed, "evaluation", 1).numpy()[:rows]
    tokens_RC = torch.from_numpy(source.text.train.tokens[chosen][:, :1].astype(np.int64)).to(device)
    first = source.model.activations(tokens_RC, sites)  # position 0 sees no other position
    return {s.key: Means(first[s.key][:, 0].mean(0), compared.fitted[s.key].mean_D.to(device)) for s in sites}
