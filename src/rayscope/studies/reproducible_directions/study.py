"""How many directions do other seeds and other documents find again, and how many of them are more than a token?

B draws, S seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
import torch

from rayscope.dictionaries import TopK
from rayscope.studies.arms import Training, train_all, trained
from rayscope.studies.intervals import resamples
from rayscope.studies.reproducible_directions.counted import Counted, observed, rows
from rayscope.studies.reproducible_directions.figure import figure
from rayscope.studies.reproducible_directions.reproduced import Counts, HeldOut, reproduced
from rayscope.studies.reproducible_directions.streams import HALVES, NULLS, REAL, WORDS, Group, Streams, groups
from rayscope.studies.setting import Findings, Setting

DRAWS = 1000


@dataclass(frozen=True)
class Arm:
    """Rays that are trained on each half; their name is that of their folder."""

    latents: int
    seed: int

    @property
    def name(self) -> str:
        return f"latents{self.latents}_seed{self.seed}"


def reproducible_directions(
    setting: Setting,
    *,
    widths: Sequence[int],
    k: int,
    tokens: int,
    null_tokens: int,
    means_tokens: int,
    test_tokens: int,
    batch_size: int | None = None,
    lr: float | None = None,
    taus: Sequence[float] = (0.7, 0.9),
    explained: float = 0.7,
    nulls: Sequence[str] = NULLS,
) -> Findings:
    """TopK rays of each width and seed on each half of the training documents, at the first residual site (the first
    site, if there is none); see `reproduced` for what is counted. At the greatest width, and if `tokens` are at most
    `null_tokens`, the same on the nulls: surrogates (one distribution, a draw for each half and seed), and models with
    random weights (one for each seed; see `groups`).

    Observes, at the greatest tau and width: `beyond`, the number beyond tokens over the site's width; `nulls`, the
    greatest of the nulls' numbers over it; both again with positions left out; `naive_nulls`, that of all, tokens or
    not. Nulls are judged seed by seed on the same documents, and are no number if none is real.
    tokens: of each half. means_tokens: of training text, on which means by token are taken: as many as memory lets (see
    `reproduced`). batch_size: the stream's, unless given.
    Raises ValueError for unknown nulls and for fewer than two seeds.
    """
    check(setting, widths, taus, nulls)
    source = replace(setting.source, batch_size=batch_size or setting.source.batch_size)
    streams = Streams(source, setting, tokens, means_tokens, test_tokens)
    streams.check()
    names = [REAL, *(name for name in NULLS if name in nulls and tokens <= null_tokens)]

    widths_of = {name: widths if name == REAL else [max(widths)] for name in names}
    every = [group for name in names for group in groups(name, setting.seeds)]

    def training(group: Group, half: int, seeds: Sequence[int]) -> Training:
        stream = streams.half(group, half, seeds[0])
        arms = {
            Arm(latents, seed): partial(TopK, latents=latents, k=k, seed=seed, lr=lr)
            for latents in widths_of[group.name]
            for seed in seeds
        }
        about = {site: {**source.provenance(site), "stream": group.name, "half": WORDS[half]} for site in stream.sites}
        return Training(stream, arms, about=about)

    train_all(
        setting,
        {
            folder: partial(training, group, half, group.seeds_in(folder, half))
            for group in every
            for half in HALVES
            for folder in dict.fromkeys(group.folder(half, seed) for seed in group.seeds)
        },
    )
    counted: Counted = {}
    sizes = {}
    for group in every:
        held_out = held_out_of(streams, group)
        sizes[group.name] = sizes_of(streams, held_out)
        for latents in widths_of[group.name]:
            again = count(setting, streams, group, latents, held_out, taus, explained)
            counted.setdefault((group.name, latents), []).extend(again)
    table = pd.DataFrame(rows(counted, setting, k, sizes))
    site = setting.residual
    return Findings(table, observed(counted, site, max(widths), max(taus)), figure(table, [site], max(widths)))


def check(setting: Setting, widths: Sequence[int], taus: Sequence[float], nulls: Sequence[str]) -> None:
    if not nulls or not set(nulls) <= set(NULLS):
        raise ValueError(f"study.run.nulls={', '.join(nulls) or 'none'}; some of {', '.join(NULLS)} must be given")
    if len(setting.seeds) < 2:
        raise ValueError(
            f"{setting.option('seeds')}={list(setting.seeds)}: a direction is found again by another seed; "
            "give at least two"
        )
    setting.check_list("widths", widths, [128, 512])
    if not taus:
        raise ValueError("study.run.taus=[]: give at least one, such as [0.7, 0.9]")


def held_out_of(streams: Streams, group: Group) -> HeldOut:
    test = streams.test(group)
    documents = len(test.documents_N.unique())
    weights_BG = resamples(documents, DRAWS, streams.setting.source.seed)
    return HeldOut(test, torch.cat([torch.ones(1, documents, dtype=torch.float64), weights_BG]))


def sizes_of(streams: Streams, held_out: HeldOut) -> dict[str, int]:
    batch_size = streams.source.batch_size
    return {
        "tokens": streams.tokens // batch_size * batch_size,
        "batch_size": batch_size,
        "means_tokens": streams.means_tokens // batch_size * batch_size,
        "test_tokens": len(held_out.test),
        "documents": held_out.weights_BG.shape[1],
    }


def count(
    setting: Setting,
    streams: Streams,
    group: Group,
    latents: int,
    held_out: HeldOut,
    taus: Sequence[float],
    explained: float,
) -> list[Counts]:
    """By seed, of those that are counted."""
    site = setting.residual
    halved = [
        [
            trained(setting, group.folder(half, seed), [arm := Arm(latents, seed)], [site])[site][arm]
            for seed in group.seeds
        ]
        for half in HALVES
    ]
    again = reproduced({site.key: halved}, streams.seen(group), held_out, taus=taus, explained=explained)[site.key]
    return [counts for seed, counts in zip(group.seeds, again, strict=True) if seed in group.counted]
