"""What does a bit buy? Every learned dictionary and every baseline at equal bits, with the nulls beside them.

B bootstrap draws, N vectors.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.colors import to_rgb
from torch import Tensor

from rayscope.dictionaries import Dictionary, Learned, recoded
from rayscope.drawing import COLOURS, LINES, MARKERS, label, log_axis, panels
from rayscope.evaluation import metrics
from rayscope.evaluation.comparison import Baseline, Comparison, compare
from rayscope.evaluation.measurement import Measurement
from rayscope.evaluation.meter import Meter
from rayscope.evaluation.reconstruction import reconstruct
from rayscope.model.sites import Site
from rayscope.pipeline import measure_compared
from rayscope.streams.positions import VIEWS
from rayscope.streams.stream import Batch
from rayscope.studies.arms import groups, lent, parts, train_arms
from rayscope.studies.study import Findings, Setting, over_seeds, resamples

COLUMNS = [
    "site", "method", "position0", "role", "k", "latents", "seed", "bits", "bits_entropy", "fvu", "fvu_low", "fvu_high", "dce", "dce_low",
    "dce_high", "kl", "kl_low", "kl_high", "l0", "dead", "gap_omp", "gap_fista", "quantised", "tokens", "splice_tokens",
    "gap_tokens", "trained_tokens",
]  # fmt: skip
NAME = re.compile(r"(.+)_k\d+(?:_s(\d+))?")
DRAWS = 1000
NULLS = ("random", "frozen", "soft_frozen", "mean")
BAND = ("random", "frozen")  # of the figure: directions that know nothing of the data
LARGEST = 1000.0  # a ratio of losses; the denominator can vanish


def pareto(
    setting: Setting,
    *,
    arms: dict[str, Callable[..., Learned]],
    controls: dict[str, Callable[..., Learned]],
    kinds: dict[str, Callable[..., Learned]],
    baselines: dict[str, dict[str, Any]],
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
    """arms and controls are trained at every k and seed, kinds at the least k with the first seed, baselines whose fit takes
    a `seed` fitted for each; "rays" and "pca_topk" must be there.

    gap_omp, gap_fista: the amortisation gap, the FVU of the dictionary's own codes less that of the coder's on its
    directions, on the first gap_tokens test vectors and without quantisation; FISTA for the least k and first seed alone.

    Observes ratios of dCE at equal bits, each the least over sites (and k, where more than one is measured):
    `sparse_pca` that of pca_topk to the rays', `token_means` and `best_fitted` (the best baseline but token_means) at the least k.
    """
    setting.check_list("ks", ks, [8, 16])
    seeds, first = setting.seeds, min(ks)
    made = {
        f"{name}_k{k}_s{seed}": partial(make, latents=latents, k=k, seed=seed, lr=lr)
        for group, at, of in ((arms, ks, seeds), (controls, ks, seeds), (kinds, [first], seeds[:1]))
        for name, make in group.items()
        for k in at
        for seed in of
    }
    source, sites = setting.source, setting.sites
    for split, size, name in (("train", fit_tokens, "fit_tokens"), ("test", source.batch_size, "gap_tokens")):
        source.stream(split, sites, size, option=setting.option(name))  # which are read after training
    setting.check_rows(held_out=held_out, splice_tokens=min(held_out, splice_tokens))
    learned: dict[Site, dict[str, Dictionary]] = {site: {} for site in sites}
    for number, (there, names) in enumerate(groups(sites, made, latents)):
        trained = train_arms(
            setting.folder / "arms" / str(number), source.stream("train", there, tokens, option=setting.option("tokens")),
            source.stream("validation", there, validation_tokens, "fp32", setting.option("validation_tokens")), {name: made[name] for name in names},
            vocabulary=source.model.vocabulary, about={site: source.provenance(site) for site in there},
        )  # fmt: skip
        for site, named in trained.items():
            learned[site] |= {name: dictionary.cpu() for name, dictionary in named.items()}
    compared = compare(
        source, learned, for_seeds(baselines, seeds), first, fit_tokens, sample, setting.option("fit_tokens")
    )
    compared = replace(compared, all={site: seed_last(named) for site, named in compared.all.items()})
    measured = measure_in_parts(
        compared, tokens=held_out, splice_tokens=splice_tokens, validation_tokens=validation_tokens
    )
    gaps = amortisation(compared, gap_tokens, first, seeds[0])
    weights_BG = resamples(measured.documents, DRAWS)
    table = pd.DataFrame(
        [
            row_of(measured, site, name, position0, weights_BG)
            | (gaps.get((site, name), {}) if position0 == "excluded" else {})
            for site, named in measured.meters.items()
            for name in named
            for position0 in VIEWS
        ]
    ).reindex(columns=COLUMNS)
    ratios = Ratios(measured, compared)
    observed = {
        "sparse_pca": over_seeds([ratios.least(["pca_topk"], ks, seed) for seed in seeds]),
        "token_means": over_seeds([ratios.least(["token_means"], [first], seed) for seed in seeds]),
        "best_fitted": over_seeds(
            [ratios.least([n for n in baselines if n != "token_means"], [first], seed) for seed in seeds]
        ),
    }
    return Findings(table, observed, figure(table))


def for_seeds(baselines: dict[str, dict[str, Any]], seeds: Sequence[int]) -> dict[str, Baseline]:
    """{name: baseline}, and {name_s0: ..., name_s1: ...} of one whose fit takes a seed and is given none."""
    found: dict[str, Baseline] = {}
    for name, entry in baselines.items():
        fit = entry["fit"]
        if "seed" in inspect.signature(fit).parameters and "seed" not in getattr(fit, "keywords", {}):
            found |= {f"{name}_s{seed}": Baseline(**{**entry, "fit": partial(fit, seed=seed)}) for seed in seeds}
        else:
            found[name] = Baseline(**entry)
    return found


def seed_last(named: dict[str, Dictionary]) -> dict[str, Dictionary]:
    """ica_s0_k9 as ica_k9_s0, as the learned ones are named."""
    return {re.sub(r"(_s\d+)(_k\d+)$", r"\2\1", name): dictionary for name, dictionary in named.items()}


def method_and_seed(name: str) -> tuple[str, int | None]:
    """rays_k8_s0 -> rays, 0; pca_topk_k9 -> pca_topk, None: the same for every seed."""
    found = NAME.fullmatch(name)
    method, seed = found.groups() if found else (name, None)
    return method, None if seed is None else int(seed)


def measure_in_parts(compared: Comparison, **options: Any) -> Measurement:
    """`measure_compared`, with as many dictionaries at a time as fit on the device; the documents are always the same."""
    found: list[Measurement] = []
    for part in parts(compared.all):
        with lent((d for named in part.values() for d in named.values()), compared.source.model.device):
            found.append(measure_compared(replace(compared, all=part), **options))
    meters: dict[Site, dict[str, Meter]] = {site: {} for site in compared.all}
    for site, named in ((site, named) for one in found for site, named in one.meters.items()):
        before = {name: meter for name, meter in meters[site].items() if name not in named}
        meters[site] = before | named  # what is no dictionary is in every part, and stays last
    zero_G = {key: sums_G for one in found for key, sums_G in one.zero_G.items()}
    return replace(found[0], meters=meters, zero_G=zero_G)


class Ratios:
    """dCE of baselines over that of the rays, both on the same resamples of documents."""

    def __init__(self, measured: Measurement, compared: Comparison):
        self.measured, self.compared = measured, compared
        self.weights_BG = torch.cat([torch.ones(1, measured.documents).double(), resamples(measured.documents, DRAWS)])

    def dce(self, site: Site, name: str) -> Tensor:
        """[1 + B]: of all documents, then of each draw."""
        return self.measured.statistics(site, name)["dce"](self.weights_BG)

    def least(self, methods: list[str], ks: list[int], seed: int) -> tuple[float, Tensor]:
        """(value, [B]): the least over sites, ks and methods; a baseline is read at the k that costs the bits of the rays, fitted with their seed."""
        found = []
        for site, named in self.compared.all.items():
            for k in ks:
                rays = f"rays_k{k}_s{seed}"
                mine = self.dce(site, rays)
                for method in methods:
                    theirs = at_bits(method, named, named[rays].bits(), seed)
                    if theirs:
                        found.append(ratio(self.dce(site, theirs), mine))
        if not found:
            raise ValueError(f"study.run.baselines: none of {', '.join(methods)} is measured at the bits of the rays")
        least = torch.stack(found).amin(0)
        return least[0].item(), least[1:]


def ratio(theirs: Tensor, mine: Tensor) -> Tensor:
    """theirs / mine; where mine costs nothing, LARGEST if theirs costs something, and 0, no gain, if neither does."""
    free = torch.where(theirs > 0, LARGEST, 0.0)
    return torch.where(mine > 0, theirs / mine, free).clamp(-LARGEST, LARGEST)


def at_bits(method: str, named: dict[str, Dictionary], bits: float, seed: int) -> str | None:
    """The method's dictionary, of this seed or of none, of the fewest bits at or above these, if one code less would have fewer."""
    fitting = ((method, seed), (method, None))
    there = {n: d.bits() for n, d in named.items() if method_and_seed(n) in fitting}
    above = sorted((b, n) for n, b in there.items() if b >= bits - 1e-9)
    if not above:
        return None
    nearest = named[above[0][1]]
    less = nearest.bits(nearest.k - 1) if nearest.k > 1 else 0.0
    return above[0][1] if less < bits else None


def amortisation(compared: Comparison, tokens: int, first: int, seed: int) -> dict[tuple[Site, str], dict[str, float]]:
    """{(site, name): {gap_omp, gap_fista, gap_tokens}} of the learned dictionaries of k codes and nothing beside."""
    source = compared.source
    stream = source.stream("test", list(compared.learned), max(tokens, source.batch_size), "fp32")
    test = Batch.join(stream).take(torch.arange(min(tokens, len(stream) * stream.batch_size)))
    found: dict[tuple[Site, str], dict[str, float]] = {}
    for site, named in compared.learned.items():
        for name, dictionary in named.items():
            if not dictionary.plain:
                continue  # a coder would have other codes to spend, or know less
            coders = ["omp", *(["fista"] if name.endswith(f"_k{first}_s{seed}") else [])]
            with lent([dictionary], source.model.device):
                both = {"own": dictionary, **{coder: recoded(dictionary, coder) for coder in coders}}
                fvu = {n: m.statistics()["fvu"] for n, m in reconstruct({site: both}, test)[site].items()}
            value = {n: f(torch.ones(1, len(test.documents_N.unique())).double()).item() for n, f in fvu.items()}
            found[site, name] = {f"gap_{c}": value["own"] - value[c] for c in coders} | {"gap_tokens": len(test)}
    return found


def row_of(measured: Measurement, site: Site, name: str, position0: str, weights_BG: Tensor) -> dict[str, Any]:
    meter = measured.meters[site][name]
    statistics = measured.statistics(site, name, position0)
    ones = torch.ones(1, measured.documents, dtype=torch.float64)
    row: dict[str, Any] = {metric: f(ones).item() for metric, f in statistics.items()} | meter.whole(position0)
    for metric in ("fvu", "dce", "kl"):
        row[f"{metric}_low"], row[f"{metric}_high"] = metrics.interval(statistics[metric], weights_BG)
    method, _ = method_and_seed(name)
    codec = meter.codec
    if isinstance(codec, Dictionary):
        role = "directions" if codec.signed else "rays"
        role = ("told" if codec.side else role) if isinstance(codec, Learned) else "baseline"
        row |= {"k": codec.k, "latents": codec.latents, "seed": codec.provenance.get("seed")}
        row |= {"role": "control" if method in NULLS else role, "trained_tokens": codec.provenance.get("tokens")}
    else:
        row["role"] = "control"
    sizes = {"tokens": measured.tokens, "splice_tokens": measured.splice_tokens}
    return {
        "site": site.hook,
        "method": method,
        "position0": position0,
        "quantised": meter.grid is not None,
        **sizes,
        **row,
    }


def figure(table: pd.DataFrame) -> str:
    """FVU and dCE against bits, position 0 left out: a line a method (the mean over seeds), the band of BAND
    shaded, a row a site."""
    coded = table[table["position0"] == "excluded"].dropna(subset=["bits"])
    sites = list(dict.fromkeys(coded["site"]))
    curves = coded.groupby(["site", "method", "role", "k"], sort=False)[["bits", "fvu", "dce"]].mean().reset_index()
    roles = {n: role for n, role in zip(curves["method"], curves["role"], strict=True) if n not in BAND}
    with panels(2 * len(sites), 3.4) as (axes, svg):
        for i, (site, metric) in enumerate((site, metric) for site in sites for metric in ("fvu", "dce")):
            one, here = axes[i], curves[curves["site"] == site]
            null = here[here["method"].isin(BAND)].sort_values("bits")
            for j, (name, role) in enumerate(roles.items()):
                mine = here[here["method"] == name].sort_values("bits")
                if len(mine):
                    alike = [n for n in roles if roles[n] == role]
                    tint = 0.6 * alike.index(name) / len(alike)
                    colour = to_rgb({**COLOURS, "control": COLOURS["null"]}[role])
                    look = {"marker": MARKERS[j % len(MARKERS)], "ls": LINES[j % len(LINES)]}
                    look["color"] = tuple((1 - tint) * c + tint for c in colour)
                    one.plot(mine["bits"], mine[metric], label=label(name), lw=2 if name == "rays" else 1, **look)
            if len(null):
                bits = np.unique(null["bits"])
                of = [np.interp(bits, curve["bits"], curve[metric]) for _, curve in null.groupby("method")]
                low, high, grey = np.min(of, 0), np.max(of, 0), COLOURS["null"]
                one.fill_between(bits, low, high, color=grey, alpha=0.25, lw=0, label=" and ".join(BAND))
            log_axis(one, "x", "bits per token (log)")
            if (here[metric] > 0).all():
                log_axis(one, "y", "")
            one.set_ylabel({"fvu": "FVU", "dce": "dCE (nats per token)"}[metric])
            one.set_title(label(site))
        return svg()
