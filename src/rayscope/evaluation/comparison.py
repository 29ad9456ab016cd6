"""Comparison: the dictionaries of each site alongside the baselines at equal bits."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from rayscope.baselines import SiteFit, fit_sites
from rayscope.dictionaries import Dictionary
from rayscope.evaluation.codecs import Codec, references
from rayscope.evaluation.entry import Entry, label, role_of
from rayscope.model.sites import Site
from rayscope.seeding import generator_of
from rayscope.streams.source import Source
from rayscope.streams.windows import read_rows

BUDGET_BITS = 4  # per value, at which budgets are equal: from 3 on rays and principal components lose little to levels
OWN_BITS = (2, 4, 8)


@dataclass(frozen=True)
class Baseline:
    """A method that is fitted to each site: SiteFit -> Dictionary, or None if it does not fit the site.

    budgets: `all` the ray dictionaries' bits, or those at the `headline` k. max_k: the most codes that the method has
    (k-means: 1); a budget above that gets this k, once, at its own fewer bits. seed: what it is fitted with, if it is
    fitted with several. family: what the methods have in common among whose fronts the best is looked for; its own if
    None.
    """

    method: str
    fit: Callable[[SiteFit], Dictionary | None]
    budgets: str = "all"
    max_k: int | None = None
    seed: int | None = None
    family: str | None = None

    def __post_init__(self):
        if self.budgets not in ("all", "headline"):
            raise ValueError(f"baselines: {self.method} has budgets={self.budgets}; all or headline")
        if self.max_k is not None and self.max_k < 1:
            raise ValueError(f"baselines: {self.method} has max_k={self.max_k}; at least 1")

    def for_seeds(self, seeds: Iterable[int]) -> list["Baseline"]:
        """One for each seed if the fit takes a `seed` and is given none, else this one."""
        fit: Any = self.fit
        if "seed" not in inspect.signature(fit).parameters or "seed" in getattr(fit, "keywords", {}):
            return [self]
        return [replace(self, fit=partial(fit, seed=seed), seed=seed) for seed in seeds]


def baselines_at_equal_bits(
    fit: SiteFit,
    baselines: Iterable[Baseline],
    learned: Iterable[Dictionary],
    headline_k: int,
    about: Mapping[str, Any],
    value_bits: int = BUDGET_BITS,
) -> list[Entry]:
    """Each baseline at the least k that costs at least the bits of a learned dictionary, once at each k.

    The budgets are those of rays of a fixed k (of any dictionary, if there are none): the few bits by which a baseline
    is above are its advantage. Both have `value_bits` for each value; a baseline that gives out its bits itself is
    measured at what the rays cost with each of OWN_BITS. about: the provenance of what was fitted.
    """
    rays = plain_rays(learned)
    budgets = {"all": rays, "headline": [d for d in rays if d.k == headline_k] or rays}
    entries = []
    for baseline in baselines:
        dictionary = baseline.fit(fit)
        if dictionary is None:
            continue
        itself = dictionary.allocation_L is not None
        each = OWN_BITS if itself else (value_bits,)
        every = sorted({rays.bits(value_bits=b) for rays in budgets[baseline.budgets] for b in each})
        at = [dictionary.at_bits(bits, value_bits, baseline.max_k) for bits in every]
        for at_k in {(d.k, d.bits()): d for d in at}.values():
            at_k.provenance = {**about, **at_k.provenance}
            seed = at_k.provenance.get("seed") if baseline.seed is None else baseline.seed
            name = label(baseline.method, at_k.k, baseline.seed) + (f"_{at_k.bits():.0f}bits" if itself else "")
            family = baseline.family or baseline.method
            entries.append(Entry(fit.site, baseline.method, role_of(at_k), at_k.k, seed, at_k, name, family=family))
    return entries


@dataclass(frozen=True)
class Comparison:
    """What is compared. entries: at each site its baselines at equal bits, then its learned dictionaries.

    source: whose text is measured; fitting: on whose training text baselines and references are fitted.
    fitted: what the baselines were fitted from, {site.key: SiteFit}; headline_k: where single budgets are read.
    """

    source: Source
    fitting: Source
    learned: Sequence[Entry]
    entries: Sequence[Entry]
    fitted: dict[str, SiteFit]
    headline_k: int

    @property
    def sites(self) -> list[Site]:
        return list(dict.fromkeys(entry.site for entry in self.entries))


def compare(
    source: Source,
    learned: Sequence[Entry],
    baselines: Sequence[Baseline],
    headline_k: int,
    fit_tokens: int,
    sample: int = 0,
    option: str = "baselines.fit_tokens",
    fitting: Source | None = None,
    value_bits: int = BUDGET_BITS,
) -> Comparison:
    """Fits the baselines at every site of the learned dictionaries.

    sample: how many of the fit_tokens' vectors per site stay in memory (4 bytes x width each) for baselines that need
    them; option: what the user calls `fit_tokens`; fitting: the source of the text that they are fitted on, if it is
    another than the one measured; value_bits: of each value, at which budgets are equal.
    """
    fitting = fitting or source
    sites = list(dict.fromkeys(entry.site for entry in learned))
    stream = fitting.stream("train", sites, fit_tokens, "fp32", option)
    fitted = fit_sites(fitting.model, sites, stream, sample, fitting.seed)
    about = {"tokens": fit_tokens, "text": fitting.text.provenance}
    entries = []
    for site in sites:
        here = [entry for entry in learned if entry.site == site]
        dictionaries, names = [entry.dictionary for entry in here], {entry.name for entry in here}
        for entry in baselines_at_equal_bits(fitted[site.key], baselines, dictionaries, headline_k, about, value_bits):
            if entry.name in names:
                raise ValueError(
                    f"{entry.name} at {site.hook} is a baseline's name too; rename the dictionary's folder"
                )
            entry.dictionary.to(source.model.device)
            entries.append(entry)
        entries += here
    return Comparison(source, fitting, learned, entries, fitted, headline_k)


def plain_rays(dictionaries: Iterable[Dictionary]) -> list[Dictionary]:
    """Unsigned dictionaries of a fixed k without side information, whose bits are the budgets;
    all, if there are none.
    """
    dictionaries = list(dictionaries)
    return [d for d in dictionaries if d.plain and not d.signed] or dictionaries


def headline_budget(dictionaries: Iterable[Dictionary], headline_k: int) -> float:
    """Bits per token, at BUDGET_BITS, of the rays (of any, if there are none) whose k is nearest to the headline."""
    return min(plain_rays(dictionaries), key=lambda d: abs(d.k - headline_k)).bits(value_bits=BUDGET_BITS)


def reference_codecs(compared: Comparison, rows: int = 64) -> dict[Site, dict[str, Codec]]:
    """Of each site: from its means over training text,
    at position 0 and in the stream that baselines were fitted from.
    """
    source, sites, device = compared.fitting, compared.sites, compared.fitting.model.device
    chosen = torch.randperm(len(source.text.train), generator=generator_of("position 0", source.seed)).numpy()[:rows]
    tokens_RC, _ = read_rows(source.text.train, chosen)
    x_RCD = source.model.activations(tokens_RC[:, :1], sites)  # position 0 sees no other position
    about = {"text": source.text.provenance}
    return {s: references(x_RCD[s.key][:, 0].mean(0), compared.fitted[s.key].mean_D.to(device), about) for s in sites}
