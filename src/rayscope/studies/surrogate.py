"""How much of the gain of rays over PCA is structure? The same on nulls that keep more and more of the activations.

N vectors, L latents, B bootstrap draws, G documents.
"""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportAttributeAccessIssue=false

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from rayscope.baselines import pca
from rayscope.dictionaries import Dictionary, Learned
from rayscope.dictionaries.code_length import VALUE_BITS
from rayscope.drawing import COLOURS, MARKERS, label, panels
from rayscope.evaluation import metrics
from rayscope.evaluation.meter import Meter
from rayscope.evaluation.reconstruction import reconstruct
from rayscope.model.nulls import random_weights
from rayscope.model.sites import Site
from rayscope.streams.source import Source
from rayscope.streams.statistics import Moments
from rayscope.streams.stream import Batch, Stream
from rayscope.streams.surrogates import Surrogate, sample_sites
from rayscope.studies.arms import Arm, train_arms
from rayscope.studies.intervals import Observed, over_seeds, resamples
from rayscope.studies.study import Findings, Setting
from rayscope.text import SPLITS

MATCHED = ("gaussian", "elliptical", "pc_shuffled", "token_mixture")  # of the real mean and covariance
STREAMS = ("real", *MATCHED, "random_weights")
COLUMNS = [
    "stream", "site", "method", "k", "value_bits", "latents", "bits", "seed", "metric", "value", "low", "high",
    "tokens", "trained_tokens",
]  # fmt: skip
DRAWS = 1000
LARGEST = 1000.0  # a fraction of a gain that can vanish
Gains = dict[tuple[str, int, int], tuple[float, Tensor]]  # {(hook, k, seed): (value, [B] its bootstrap)}


@dataclass(frozen=True)
class Arena:
    """A stream to train on, validation and test vectors like its own, and the moments that its PCA is made from."""

    stream: Stream
    validation: Batch
    test: Batch
    moments: dict[str, Moments]


def surrogate(
    setting: Setting,
    *,
    rays: Callable[..., Learned],
    latents: int,
    ks: list[int],
    tokens: int,
    fit_tokens: int,
    sample: int,
    held_out: int,
    lr: float | None = None,
) -> Findings:
    """gain = 1 - FVU(rays) / FVU(pca_topk), PCA at the least k that costs at least the bits of the rays.

    fit_tokens: what moments and means by token are taken from; the fewer, the less of rare tokens the mixture keeps,
    and what it lacks passes for more than tokens. Rays are trained on each stream; PCA is that of the stream's own mean
    and covariance, which the four surrogates share with the real one, and so do their test vectors exactly
    (`Surrogate.match`).

    Observes `prefix`, the largest relative difference of pca_prefix's FVU on the first three nulls from the real one;
    for `gaussian`, `token_mixture` and `random_weights` the gain there as a share of the real gain, largest over sites
    and k; `beyond_tokens`, the real gain less that on the token mixture, least over sites and k.
    """
    setting.check_list("ks", ks, [8, 16])
    arms = {
        Arm("rays", k, seed): partial(rays, latents=latents, k=k, seed=seed, lr=lr)
        for k in ks
        for seed in setting.seeds
    }
    gains: dict[str, Gains] = {}
    prefix: dict[tuple[str, str, int], float] = {}
    rows = []
    for stream, arena in make_arenas(setting, tokens, fit_tokens, sample, held_out):
        trained = train_arms(setting.folder / "arms" / stream, arena.stream, [arena.validation], arms)
        gains[stream] = {}
        for site, learned in trained.items():
            measured = measure(site, learned, arena)
            rows += [
                {"stream": stream, "site": site.hook, **row_of(one), "tokens": len(arena.test)} for one in measured
            ]
            prefix |= {(stream, site.hook, k): value for k, value in prefix_fvu(site, measured, arena).items()}
            here = {(site.hook, *cell): gain for cell, gain in gains_of(measured).items()}
            rows += [gain_row(stream, *cell, gain) for cell, gain in here.items()]
            gains[stream] |= here
    table = pd.DataFrame(rows).reindex(columns=COLUMNS)
    cells = [(site.hook, k) for site in setting.sites for k in ks]
    apart = [abs(prefix[null, *cell] / prefix["real", *cell] - 1) for null in MATCHED[:3] for cell in cells]
    beyond = [least([difference(gains, cell, seed) for cell in cells]) for seed in setting.seeds]
    observed = {
        "prefix": Observed.exactly(max(apart)),
        **{
            null: worst_share(gains, null, cells, setting.seeds)
            for null in ("gaussian", "token_mixture", "random_weights")
        },
        "beyond_tokens": over_seeds(beyond),
    }
    return Findings(table, observed, figure(table))


@dataclass(frozen=True)
class Measured:
    """Rays, or PCA at the bits of rays of k codes, on test vectors; fvu: (value, [B] its bootstrap over documents)."""

    method: str
    k: int
    seed: int | None
    dictionary: Dictionary
    bits: float
    fvu: tuple[float, Tensor]


def measure(site: Site, learned: Mapping[Arm, Dictionary], arena: Arena) -> list[Measured]:
    compared: dict[tuple[str, int, int | None], Dictionary] = {
        (arm.method, arm.k, arm.seed): dictionary for arm, dictionary in learned.items()
    }
    for method, coder in (("pca_topk", "topk"), ("pca_prefix", "prefix")):
        fitted = pca(arena.moments[site.key], 1, coder)
        for arm, rays in learned.items():
            compared[method, arm.k, None] = fitted.with_k(fitted.k_of_bits(rays.bits())).to(rays.device)
    meters = reconstruct({site: compared}, arena.test, arena.validation)[site]
    return [
        Measured(*key, dictionary, meters[key].whole()["bits"], of_documents(meters[key]))
        for key, dictionary in compared.items()
    ]


def prefix_fvu(site: Site, measured: Sequence[Measured], arena: Arena) -> dict[int, float]:
    """{k of the rays: FVU of pca_prefix, its values in full precision}."""
    prefix = {one.k: one.dictionary for one in measured if one.method == "pca_prefix"}
    meters = reconstruct({site: prefix}, arena.test)[site]
    return {k: of_documents(meter)[0] for k, meter in meters.items()}


def gains_of(measured: Sequence[Measured]) -> dict[tuple[int, int], tuple[float, Tensor]]:
    """{(k, seed): 1 - FVU(rays) / FVU(pca_topk)}."""
    theirs = {one.k: one.fvu for one in measured if one.method == "pca_topk"}
    return {
        (one.k, one.seed): (1 - one.fvu[0] / theirs[one.k][0], 1 - one.fvu[1] / theirs[one.k][1])
        for one in measured
        if one.seed is not None
    }


def make_arenas(
    setting: Setting, tokens: int, fit_tokens: int, sample: int, held_out: int
) -> Iterator[tuple[str, Arena]]:
    """(name, Arena) of every stream, the real one first, one at a time: each holds its held-out vectors."""
    source, sites = setting.source, setting.sites

    def fit(source: Source) -> Stream:
        return source.stream("train", sites, fit_tokens, "fp32", setting.option("fit_tokens"))

    def train_on(source: Source) -> Stream:
        return source.stream("train", sites, tokens, option=setting.option("tokens"))

    def hold_out(source: Source) -> dict[str, Batch]:
        streams = {
            split: source.stream(split, sites, held_out, "fp32", setting.option("held_out")) for split in SPLITS[1:]
        }
        setting.check_stream(streams["test"], held_out=held_out)
        return {split: Batch.join(stream) for split, stream in streams.items()}

    train, held = train_on(source), hold_out(source)
    known = sample_sites(fit(source), source.model.vocabulary, sample)
    moments = {key: one.moments for key, one in known.items()}
    yield "real", Arena(train, held["validation"], held["test"], moments)
    for kind in MATCHED:
        null = Surrogate(kind, known, train, seed=source.seed)
        yield kind, Arena(null, null.match(held["validation"]), null.match(held["test"]), moments)
    other = replace(source, model=random_weights(source.model, source.seed))
    theirs = sample_sites(fit(other), other.model.vocabulary, 1)
    held = hold_out(other)
    moments = {key: one.moments for key, one in theirs.items()}
    yield "random_weights", Arena(train_on(other), held["validation"], held["test"], moments)


def of_documents(meter: Meter) -> tuple[float, Tensor]:
    """(FVU, [B] its bootstrap over documents, the same resamples for every codec)."""
    documents = len(meter.point().errors["excluded"].error_G)
    fvu = meter.statistics()["fvu"]
    return fvu(torch.ones(1, documents, dtype=torch.float64)).item(), fvu(resamples(documents, DRAWS))


def row_of(one: Measured) -> dict[str, Any]:
    value, draws_B = one.fvu
    low, high = metrics.interval(lambda _: draws_B, draws_B)
    about = {"method": one.method, "k": one.dictionary.k, "latents": one.dictionary.latents, "bits": one.bits}
    about |= {"seed": one.seed, "trained_tokens": one.dictionary.provenance.get("tokens"), "value_bits": VALUE_BITS}
    return {**about, "metric": "fvu", "value": value, "low": low, "high": high}


def gain_row(stream: str, hook: str, k: int, seed: int, gain: tuple[float, Tensor]) -> dict[str, Any]:
    value, draws_B = gain
    low, high = metrics.interval(lambda _: draws_B, draws_B)
    about = {"stream": stream, "site": hook, "method": "rays", "k": k, "seed": seed, "value_bits": VALUE_BITS}
    return {**about, "metric": "gain", "value": value, "low": low, "high": high}


def worst_share(gains: dict, name: str, cells: list[tuple[str, int]], seeds: tuple[int, ...]) -> Observed:
    """The gain on a null over the real gain, the largest of all sites and k.

    NaN if there is no real gain; a draw without one counts as the worst, LARGEST.
    """
    shares = []
    for seed in seeds:
        each = []
        for cell in cells:
            (null, null_B), (real, real_B) = gains[name][*cell, seed], gains["real"][*cell, seed]
            share_B = torch.where(real_B > 0, null_B / real_B, LARGEST).clamp(max=LARGEST)
            each.append((null / real if real > 0 else math.nan, share_B))
        values = [value for value, _ in each]
        worst = math.nan if any(map(math.isnan, values)) else max(values)
        shares.append((worst, torch.stack([draws_B for _, draws_B in each]).amax(0)))
    return over_seeds(shares)


def difference(gains: dict, cell: tuple[str, int], seed: int) -> tuple[float, Tensor]:
    real, null = gains["real"][*cell, seed], gains["token_mixture"][*cell, seed]
    return real[0] - null[0], real[1] - null[1]


def least(each: list[tuple[float, Tensor]]) -> tuple[float, Tensor]:
    return min(v for v, _ in each), torch.stack([draws_B for _, draws_B in each]).amin(0)


def figure(table: pd.DataFrame) -> str:
    """The gain on every stream, from what keeps least to the real one, a marker a k, bars over seeds and documents."""
    gains = table[table["metric"] == "gain"]
    order = [*MATCHED[:3], "random_weights", "token_mixture", "real"]
    sites = list(dict.fromkeys(gains["site"]))
    with panels(len(sites), 2.8) as (axes, svg):
        for one, site in zip(axes, sites, strict=True):
            here = gains[gains["site"] == site]
            ks = sorted(here["k"].unique())
            for i, k in enumerate(ks):
                mine = (
                    here[here["k"] == k]
                    .groupby("stream")[["value", "low", "high"]]
                    .agg({"value": "mean", "low": "min", "high": "max"})
                    .reindex(order)
                )
                places = [place + 0.15 * (i - (len(ks) - 1) / 2) for place in range(len(order))]
                bars = [mine["value"] - mine["low"], mine["high"] - mine["value"]]
                colour = COLOURS["rays"]
                one.errorbar(
                    places, mine["value"], bars, fmt=MARKERS[i], color=colour, mfc="white", label=f"k = {k:.0f}"
                )
            one.axhline(0, color=COLOURS["control"], linewidth=1)
            one.set_xticks(range(len(order)), [name.replace("_", "\n") for name in order])
            one.set_ylabel("gain over pca_topk at equal bits")
            one.set_title(label(site))
        return svg()
