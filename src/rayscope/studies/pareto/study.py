"""What does a bit buy? Every learned dictionary and every baseline at equal bits, with the controls.

B bootstrap draws.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from rayscope.dictionaries import Dictionary, Learned
from rayscope.dictionaries.code_length import VALUE_BITS
from rayscope.evaluation import metrics
from rayscope.evaluation.comparison import Baseline, Comparison, compare
from rayscope.evaluation.entry import Entry
from rayscope.evaluation.measurement import Measurement
from rayscope.evaluation.meter import SiteSums
from rayscope.evaluation.recoding import OWN, check_coders, under
from rayscope.model.sites import Site
from rayscope.pipeline import measure_compared
from rayscope.streams.positions import VIEWS
from rayscope.studies.arms import Arm, Training, groups, lent, parts, train_all, trained
from rayscope.studies.intervals import Observed, over_seeds, resamples
from rayscope.studies.pareto.amortisation import amortisation
from rayscope.studies.pareto.figure import figure
from rayscope.studies.pareto.rates import Rates, headline_rate
from rayscope.studies.pareto.ratios import Ratios
from rayscope.studies.setting import Findings, Setting

COLUMNS = [
    "site", "method", "coder", "family", "position0", "role", "k", "value_bits", "latents", "seed", "bits",
    "bits_entropy", "fvu", "fvu_low", "fvu_high", "dce", "dce_low", "dce_high", "kl", "kl_low", "kl_high", "l0", "dead",
    "gap_omp", "gap_fista", "tokens", "splice_tokens", "gap_tokens", "trained_tokens",
]  # fmt: skip
DRAWS = 1000


def pareto(
    setting: Setting,
    *,
    arms: dict[str, Callable[..., Learned]],
    controls: dict[str, Callable[..., Learned]],
    kinds: dict[str, Callable[..., Learned]],
    baselines: dict[str, dict[str, Any]],
    coders: list[str],
    value_bits: list[int],
    ks: list[int],
    latents: int,
    tokens: int,
    fit_tokens: int,
    sample: int,
    held_out: int,
    splice_tokens: int,
    validation_tokens: int,
    gap_tokens: int,
    lr: float | None = None,
) -> Findings:
    """arms and controls are trained at every k and seed, kinds at the least k with the first seed, baselines whose fit
    takes a `seed` are fitted for each; "rays" and "pca_topk" must be there.

    Each is measured under every coder (see `under`); own must be among them.

    gap_omp, gap_fista: the amortisation gap, the FVU of the dictionary's own codes less that of the coder's on its
    directions, on the first gap_tokens test vectors and without quantisation; FISTA for the least k and first seed
    alone.

    Observes ratios of dCE at equal bits to the rays', each the least over sites: `sparse_pca`, that of pca_topk, over k
    too; `token_means` and `best_fitted` (the best of all others but pca_transform) at the least k. `sparse_pca_omp` is
    the first of rays coded by OMP. All of these have their values at the most of `value_bits`.

    On fronts over k and value_bits (see `Rates`), against PCA in whichever code costs least: `best_pca`, the least over
    sites of its dCE over the rays' at the bits of the least k with values at 4 bits, and `level`, the rate up to which
    rays cost no more. `best_pca_omp` and `level_omp` are those of rays coded by OMP. What is of OMP is NaN if that is
    not among the coders.
    """
    check_coders(coders, "study.run.coders")
    if OWN not in coders:
        raise ValueError(f"study.run.coders=[{','.join(coders)}]: add {OWN}, of which the predictions are")
    setting.check_list("ks", ks, [8, 16])
    seeds, first = setting.seeds, min(ks)
    source, sites = setting.source, setting.sites
    for split, size, name in (("train", fit_tokens, "fit_tokens"), ("test", source.batch_size, "gap_tokens")):
        source.stream(split, sites, size, option=setting.option(name))  # which are read after training
    setting.check_rows(held_out=held_out, splice_tokens=min(held_out, splice_tokens))
    makers = {
        Arm(method, k, seed): partial(make, latents=latents, k=k, seed=seed, lr=lr)
        for group, of_ks, of_seeds in ((arms, ks, seeds), (controls, ks, seeds), (kinds, [first], seeds[:1]))
        for method, make in group.items()
        for k in of_ks
        for seed in of_seeds
    }
    learned = [
        arm.entry(site, dictionary, "control" if arm.method in controls else None)
        for site, of_site in train(setting, makers, latents, tokens, validation_tokens).items()
        for arm, dictionary in of_site.items()
    ]
    fits = [fit for method, options in baselines.items() for fit in Baseline(method, **options).for_seeds(seeds)]
    compared = compare(
        source, learned, fits, first, fit_tokens, sample, setting.option("fit_tokens"), value_bits=VALUE_BITS
    )
    compared = replace(compared, entries=under(compared.entries, coders))
    measured = measure_in_parts(
        compared,
        tokens=held_out,
        splice_tokens=splice_tokens,
        validation_tokens=validation_tokens,
        value_bits=value_bits,
    )
    gaps = amortisation(source, learned, gap_tokens, first, seeds[0])
    table = table_of(measured, gaps)
    ratios = Ratios(measured, compared.entries, DRAWS)
    others = [method for method in baselines if method not in ("token_means", "pca_transform")]
    observed = {
        "sparse_pca": over_seeds([ratios.least(["pca_topk"], ks, seed) for seed in seeds]),
        "token_means": over_seeds([ratios.least(["token_means"], [first], seed) for seed in seeds]),
        "best_fitted": over_seeds([ratios.least(others, [first], seed) for seed in seeds]),
    }
    rates, rate = Rates(measured, compared.entries, DRAWS), headline_rate(learned, first)
    for coder, name in ((OWN, ""), ("omp", "_omp")):
        observed[f"best_pca{name}"] = over_seeds([rates.ratio_at(coder, "PCA", seed, rate) for seed in seeds])
        observed[f"level{name}"] = over_seeds([rates.level(coder, "PCA", seed, rate) for seed in seeds])
    if "omp" in coders:
        observed["sparse_pca_omp"] = over_seeds([ratios.least(["pca_topk"], ks, seed, "omp") for seed in seeds])
    return Findings(table, {"sparse_pca_omp": Observed.exactly(math.nan), **observed}, figure(table))


def train(
    setting: Setting,
    makers: Mapping[Arm, Callable[..., Learned]],
    latents: int,
    tokens: int,
    validation_tokens: int,
) -> dict[Site, dict[Arm, Dictionary]]:
    """A seed at a time, as many of its arms as fit on the device; all wait on the CPU."""
    source, of = setting.source, setting.option
    each = {
        f"seed{seed}_{number}": group
        for seed in setting.seeds
        for number, group in enumerate(groups(setting.sites, [arm for arm in makers if arm.seed == seed], latents))
    }

    def training(sites: tuple[Site, ...], arms: tuple[Arm, ...]) -> Training:
        return Training(
            source.stream("train", sites, tokens, option=of("tokens")),
            {arm: makers[arm] for arm in arms},
            source.stream("validation", sites, validation_tokens, "fp32", of("validation_tokens")),
            {site: source.provenance(site) for site in sites},
            source.model.vocabulary,
        )

    train_all(setting, {name: partial(training, *group) for name, group in each.items()})
    found: dict[Site, dict[Arm, Dictionary]] = {site: {} for site in setting.sites}
    for name, (sites, arms) in each.items():
        for site, dictionaries in trained(setting, name, arms, sites).items():
            found[site] |= {arm: dictionary.cpu() for arm, dictionary in dictionaries.items()}
    return found


def measure_in_parts(compared: Comparison, **options: Any) -> Measurement:
    """`measure_compared`, as many dictionaries at a time as fit on the device; the documents are always the same."""
    measured: list[Measurement] = []
    for part in parts(compared.entries):
        with lent((entry.dictionary for entry in part), compared.source.model.device):
            measured.append(measure_compared(replace(compared, entries=part), **options))
    sites = compared.sites
    entries = {(entry.site, entry.name): entry for one in measured for entry in one.entries}  # references are in each
    sums: dict[Site, SiteSums] = {}
    for site, there in ((site, there) for one in measured for site, there in one.sites.items()):
        sums.setdefault(site, there).meters.update(there.meters)
    order = {(entry.site, entry.name): place for place, entry in enumerate(compared.entries)}  # references come last
    entries = sorted(entries.values(), key=lambda e: (sites.index(e.site), order.get((e.site, e.name), len(order))))
    return replace(measured[0], entries=entries, sites=sums)


def table_of(measured: Measurement, gaps: Mapping[Entry, dict[str, float]]) -> pd.DataFrame:
    weights_BG = resamples(measured.documents, DRAWS)
    rows = []
    for entry in measured.entries:
        value_bits = measured.meter(entry).codec.value_bits
        for position0, b in product(VIEWS, value_bits):
            row = row_of(measured, entry, position0, b, weights_BG)
            whole = position0 == "excluded" and b == value_bits[-1]  # what is of the codes as they are stands once
            rows.append(row | (gaps.get(entry, {}) if whole else {}))
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def row_of(
    measured: Measurement, entry: Entry, position0: str, value_bits: int | None, weights_BG: Tensor
) -> dict[str, Any]:
    """dce and kl are blank where this point was not spliced."""
    meter, statistics = measured.meter(entry), measured.statistics(entry, position0, value_bits)
    ones = torch.ones(1, measured.documents, dtype=torch.float64)
    row: dict[str, Any] = {"site": entry.site.hook, "method": entry.method, "coder": entry.coder}
    row |= {"family": entry.family, "position0": position0, "role": entry.role, "k": entry.k, "seed": entry.seed}
    row |= {"value_bits": value_bits, "tokens": measured.tokens, "splice_tokens": measured.splice_tokens}
    if entry.role != "reference":
        row |= {"latents": entry.dictionary.latents, "trained_tokens": entry.dictionary.provenance.get("tokens")}
    row |= {metric: statistic(ones).item() for metric, statistic in statistics.items()}
    row |= meter.whole(position0, value_bits)
    for metric in ("fvu", "dce", "kl"):
        if metric in statistics:
            row[f"{metric}_low"], row[f"{metric}_high"] = metrics.interval(statistics[metric], weights_BG)
    return row
