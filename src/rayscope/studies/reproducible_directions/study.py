"""How many directions do other seeds and other documents find again, and how many of them are more than a token?

B draws, S seeds.
"""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
import torch
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from rayscope.dictionaries import TopK
from rayscope.dictionaries.code_length import bits
from rayscope.drawing import COLOURS, LINES, label, log_axis, panels, short
from rayscope.model.nulls import random_weights
from rayscope.model.sites import Site
from rayscope.streams.halves import halves
from rayscope.streams.source import Source
from rayscope.streams.stream import Batch, Stream
from rayscope.streams.surrogates import KINDS, Surrogate, sample_sites
from rayscope.studies.arms import train_arms
from rayscope.studies.intervals import Observed, over_seeds, resamples
from rayscope.studies.reproducible_directions.reproduced import Counts, HeldOut, reproduced
from rayscope.studies.study import Findings, Setting

REAL, RANDOM = "real", "random_weights"
DRAWS = 1000
FOUND = dict[tuple[str, str, int], list[Counts]]  # {(site, stream, latents): by seed}; the first draw is all documents


@dataclass(frozen=True)
class Arm:
    """Rays that are trained on each half; their name is that of their folder."""

    latents: int
    seed: int

    @property
    def name(self) -> str:
        return f"latents{self.latents}_seed{self.seed}"


@dataclass(frozen=True)
class Streams:
    """What dictionaries of one name train on, half by half, the training text of both where a latent's mean by token is
    taken, and the vectors on which they are compared. source: of them all, for a surrogate of what it is like."""

    source: Source
    halves: tuple[Stream, Stream]
    seen: Stream
    test: Batch


def reproducible_directions(
    setting: Setting,
    *,
    widths: Sequence[int],
    k: int,
    tokens: int,
    means_tokens: int,
    test_tokens: int,
    batch_size: int | None = None,
    lr: float | None = None,
    taus: Sequence[float] = (0.7, 0.9),
    explained: float = 0.7,
    nulls: Sequence[str] = (*KINDS, RANDOM),
) -> Findings:
    """TopK rays of each width and seed on each half of the training documents; see `reproduced` for what is counted. At
    the greatest width the same on the nulls: surrogates (one distribution, other draws for each half) and the model
    with random weights.

    Observes, at the greatest tau and width and at the first residual site (the first site, if there is none): `beyond`,
    the number beyond tokens over the site's width; `nulls`, the greatest of the nulls' numbers over it; `naive_nulls`,
    that of all, tokens or not. Nulls are judged seed by seed on the same documents,
    and are no number if none is real.
    tokens: of each half. means_tokens: of training text, on which means by token are taken: as many as memory lets (see
    `reproduced`). batch_size: the stream's, unless given.
    Raises ValueError for unknown nulls and for fewer than two seeds.
    """
    if not nulls or not set(nulls) <= {*KINDS, RANDOM}:
        raise ValueError(
            f"study.run.nulls={', '.join(nulls) or 'none'}; some of {', '.join((*KINDS, RANDOM))} must be given"
        )
    if len(setting.seeds) < 2:
        raise ValueError(
            f"{setting.option('seeds')}={list(setting.seeds)}: a direction is found again by another seed; "
            "give at least two"
        )
    setting.check_list("widths", widths, [128, 512])
    if not taus:
        raise ValueError("study.run.taus=[]: give at least one, such as [0.7, 0.9]")
    source = replace(setting.source, batch_size=batch_size or setting.source.batch_size)
    widest, found, sizes = max(widths), {}, {}
    for name, streams in every_stream(source, setting, nulls, (tokens, means_tokens, test_tokens)):
        here = widths if name == REAL else [widest]
        arms = {
            Arm(latents, seed): partial(TopK, latents=latents, k=k, seed=seed, lr=lr)
            for latents in here
            for seed in setting.seeds
        }
        trained = []
        for half, stream in zip("AB", streams.halves, strict=True):
            about = {site: {**streams.source.provenance(site), "stream": name, "half": half} for site in setting.sites}
            trained.append(train_arms(setting.folder / "arms" / f"{name}_{half}", stream, [], arms, about=about))
        documents = len(streams.test.documents_N.unique())
        weights_BG = resamples(documents, DRAWS, setting.source.seed)
        weights_BG = torch.cat([torch.ones(1, documents, dtype=torch.float64), weights_BG])
        held_out = HeldOut(streams.test, weights_BG)
        sizes[name] = {
            "tokens": len(streams.halves[0]) * source.batch_size,
            "batch_size": source.batch_size,
            "means_tokens": len(streams.seen) * source.batch_size,
            "test_tokens": len(streams.test),
            "documents": documents,
        }
        for latents in here:
            halved = {
                site.key: [[half[site][Arm(latents, seed)] for seed in setting.seeds] for half in trained]
                for site in setting.sites
            }
            again = reproduced(halved, streams.seen, held_out, taus=taus, explained=explained)
            found |= {(site.hook, name, latents): again[site.key] for site in setting.sites}
    table = pd.DataFrame(rows(found, setting, k, sizes))
    return Findings(table, observed(found, setting, widest, max(taus)), figure(table, setting.sites, widest))


def every_stream(
    source: Source, setting: Setting, nulls: Sequence[str], tokens: tuple[int, int, int]
) -> Iterator[tuple[str, Streams]]:
    """By name, one at a time; tokens: of a half, of the text that means are taken on, of test."""
    sites, options = setting.sites, [setting.option(name) for name in ("tokens", "means_tokens", "test_tokens")]

    def cut(source: Source) -> tuple[Stream, Stream]:
        first, second = (
            half.stream("train", sites, tokens[0], option=options[0]) for half in halves(source, tokens[0])
        )
        return first, second

    def streams(source: Source) -> Streams:
        seen = source.stream("train", sites, tokens[1], "fp32", options[1])
        test = setting.check_stream(source.stream("test", sites, tokens[2], "fp32", options[2]), test_tokens=tokens[2])
        return Streams(source, cut(source), seen, Batch.join(test))

    real = streams(source)
    yield REAL, real
    kinds = [name for name in nulls if name != RANDOM]
    known = sample_sites(source.stream("train", sites, tokens[0]), source.model.vocabulary) if kinds else {}
    for kind in kinds:
        first, second, seen = (
            Surrogate(kind, known, like, seed=seed) for seed, like in enumerate((*real.halves, real.seen))
        )
        yield kind, Streams(source, (first, second), seen, first.match(real.test))
    if RANDOM in nulls:
        yield RANDOM, streams(replace(source, model=random_weights(source.model, source.seed)))


def rows(found: FOUND, setting: Setting, k: int, sizes: dict[str, dict]) -> Iterator[dict]:
    """One for each seed, with its interval over documents, then one over seeds, of which the column is blank."""
    width = {site.hook: site.width for site in setting.sites}
    for (hook, name, latents), by_seed in found.items():
        about = {"site": hook, "width": width[hook], "stream": name, "latents": latents, "k": k}
        about |= {"bits": bits(latents, k, signed=False)}
        for tau, count in by_seed[0]:
            draws = [(one[tau, count][0].item(), one[tau, count][1:]) for one in by_seed]
            each = [*((s, [draw]) for s, draw in zip(setting.seeds, draws, strict=True)), (None, draws)]
            for seed, these in each:
                seen = over_seeds(these)
                row = about | {"seed": seed, "tau": tau, "metric": count, "value": seen.value}
                yield row | {"low": seen.low, "high": seen.high} | sizes[name]


def observed(found: FOUND, setting: Setting, widest: int, tau: float) -> dict[str, Observed]:
    site = setting.residual
    nulls = [name for hook, name, _ in found if hook == site.hook and name != REAL]

    def of(name: str, count: str) -> list[Tensor]:
        return [one[tau, count] for one in found[site.hook, name, widest]]

    def ratios(count: str) -> list[tuple[float, Tensor]]:
        worst = [torch.stack(each).amax(0) for each in zip(*(of(name, count) for name in nulls), strict=True)]
        return [ratio(null_B, real_B) for null_B, real_B in zip(worst, of(REAL, count), strict=True)]

    return {
        "beyond": over_seeds([(x[0].item() / site.width, x[1:] / site.width) for x in of(REAL, "beyond_tokens")]),
        "nulls": over_seeds(ratios("beyond_tokens")),
        "naive_nulls": over_seeds(ratios("all")),
    }


def ratio(null_B: Tensor, real_B: Tensor) -> tuple[float, Tensor]:
    """null / real and its draws. Without a real one the value is NaN, and a draw is at least 1: as bad as alike."""
    ratio_B = torch.where(real_B > 0, null_B / real_B.clamp_min(0.5), null_B.clamp_min(1.0))
    return ratio_B[0].item() if real_B[0] > 0 else float("nan"), ratio_B[1:]


def figure(table: pd.DataFrame, sites: Sequence[Site], widest: int) -> str:
    """Each site's counts against the number of latents and, in a second panel, those of the nulls at the widest."""
    shown = table[table["seed"].isna() & table["metric"].isin(["all", "beyond_tokens"])]
    looks = {"all": (COLOURS["directions"], "with tokens"), "beyond_tokens": (COLOURS["rays"], "beyond tokens")}
    taus = sorted(shown["tau"].unique())
    lines = [(tau, count, line) for tau, line in zip(taus, LINES, strict=False) for count in looks]
    with panels(2 * len(sites), 2.8) as (axes, svg):
        for i, site in enumerate(sites):
            against, of_nulls = axes[2 * i : 2 * i + 2]
            here = shown[shown["site"] == site.hook]
            names = list(here["stream"].unique())
            for j, (tau, count, line) in enumerate(lines):
                these = here[(here["tau"] == tau) & (here["metric"] == count)]
                colour, words = looks[count]
                real = these[these["stream"] == REAL].sort_values("latents")
                spread = [real["value"] - real["low"], real["high"] - real["value"]]
                text = f"{words}, {tau:g}"
                against.errorbar(
                    real["latents"], real["value"], [s.clip(lower=0) for s in spread],
                    marker="o", color=colour, ls=line, label=text,
                )  # fmt: skip
                at = these[these["latents"] == widest].set_index("stream").loc[names, "value"]
                places = [place + (j - (len(lines) - 1) / 2) * 0.8 / len(lines) for place in range(len(names))]
                of_nulls.bar(places, at, 0.8 / len(lines), color=colour, alpha=1.0 if tau == taus[-1] else 0.45)
            against.axhline(site.width, color=COLOURS["control"], ls=":", label="the site's width")
            log_axis(against, "x", "latents")
            against.set_xticks(real["latents"])
            against.set_title(label(site.hook))
            for one in (against, of_nulls):
                one.set_yscale("symlog", linthresh=1)
                one.yaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
                one.set_ylabel("directions")
                one.set_ylim(bottom=0)
            of_nulls.set_xticks(range(len(names)), [label(name).replace("_", "\n") for name in names], fontsize=7)
            of_nulls.set_title(f"{label(site.hook)}, {widest:,} latents")
        return svg()
