"""Rays or directions? Half-lines and lines at equal bits, on real activations, mirrored ones, and planted worlds.

B bootstrap draws, G documents, P parts of the documents.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayscope.dictionaries import AbsTopK, BottleneckTopK, Dictionary, Learned, TiedTopK, TopK
from rayscope.evaluation.comparison import compare
from rayscope.evaluation.matching import antipodal_share
from rayscope.evaluation.reconstruction import pieces, reconstruct
from rayscope.model.sites import Site
from rayscope.pipeline import measure_compared
from rayscope.streams.planted import World
from rayscope.streams.positions import VIEWS
from rayscope.streams.sign_flip import SignFlip
from rayscope.streams.stream import Batch
from rayscope.studies.arms import Arm, train_arms
from rayscope.studies.rays_vs_directions.observed import DRAWS, observe
from rayscope.studies.rays_vs_directions.polarity import PARTS, Ends, Polarity
from rayscope.studies.rays_vs_directions.records import DIRECTIONS, RAYS, Records, figure, world_stream
from rayscope.studies.study import Findings, Setting, resamples

POLARITY_DRAWS = 200


def makers(m: int, rank: int) -> dict[str, Callable[..., Learned]]:
    """A and B cost the same bits at equal k: C(2m, k) is nearly 2^k C(m, k), and a sign costs one bit."""
    return {
        RAYS: partial(TopK, latents=2 * m),
        DIRECTIONS: partial(AbsTopK, latents=m),
        "C_rays_m": partial(TopK, latents=m),
        "D_directions_2m": partial(AbsTopK, latents=2 * m),
        "E_tied_2m": partial(TiedTopK, latents=2 * m),
        "F_rays_2m_and_dense": partial(BottleneckTopK, latents=2 * m + rank, rank=rank),
    }


def rays_vs_directions(
    setting: Setting,
    *,
    latents: int,
    ks: Sequence[int],
    null_k: int,
    rank: int,
    lr: float | None,
    tokens: int,
    fit_tokens: int,
    test_tokens: int,
    splice_tokens: int,
    validation_tokens: int,
    world: Callable[..., World],
    bipolar: Sequence[float],
    planted: Mapping[str, Any],
) -> Findings:
    """All arms at every k, site and seed (latents: m); A and B at null_k on sign-flipped activations; AbsTopK on worlds.

    world: makes one of (bipolar, seed). planted: latents, k, lr, tokens, test_tokens of the AbsTopK trained on each.

    Observes `planted`, |bipolar_share - what is planted|, a mean over seeds, the largest of all worlds; `sign_flip`, the
    least bipolar_share of all sites on flipped activations; `bipolar_share`, the largest of all sites, B's mean over ks;
    `dce_ratio_residual` and `dce_ratio_mlp`, geometric means over such sites and ks of dCE(B) / dCE(A), a draw in which
    either costs nothing at the bound (see `log_ratio`); `flipped_fvu_ratio`, that of FVU(A) / FVU(B) on flipped activations;
    `shared_context`, shared - null of B (see `Ends`), a mean over the sites and ks that have one, its interval over seeds
    alone. NaN where nothing was there to measure.
    Raises ValueError for no ks, no bipolar, and a null_k not among ks.
    """
    setting.check_list("ks", ks, [8, 32])
    if not bipolar:
        raise ValueError("study.run.bipolar=[]: give at least one, such as [0, 0.5, 1]")
    if null_k not in ks:
        raise ValueError(f"{setting.option('null_k')}={null_k} is not among ks={list(ks)}; choose one of those")
    source, sites, folder = setting.source, setting.sites, setting.folder / "arms"
    make = makers(latents, rank)
    arms = [Arm(method, k, seed) for seed in setting.seeds for k in ks for method in make]
    partials = {arm: partial(make[arm.method], k=arm.k, seed=arm.seed, lr=lr) for arm in arms}
    stream = source.stream("train", sites, tokens, option=setting.option("tokens"))
    validation = source.stream("validation", sites, validation_tokens, option=setting.option("validation_tokens"))
    test = source.stream("test", sites, test_tokens, option=setting.option("test_tokens"))
    setting.check_stream(test, test_tokens=test_tokens)
    setting.check_rows(test_tokens=test_tokens, splice_tokens=min(test_tokens, splice_tokens))
    source.stream(
        "train", sites, min(tokens, fit_tokens), option="study.run.fit_tokens"
    )  # this and the next, read after training
    for split, size in (("train", "tokens"), ("test", "test_tokens")):
        world(bipolar=bipolar[0], seed=setting.seeds[0]).stream(
            split, planted[size], option=setting.option(f"planted.{size}")
        )
    about = {site: source.provenance(site) for site in sites}
    records = Records(RAYS)

    learned = train_arms(folder / "real", stream, validation, partials, about=about)
    entries = [arm.entry(site, named[arm]) for site, named in learned.items() for arm in arms]
    compared = compare(source, entries, [], null_k, min(tokens, fit_tokens), option="study.run.fit_tokens")
    measured = measure_compared(
        compared, tokens=test_tokens, splice_tokens=splice_tokens, validation_tokens=validation_tokens
    )
    weights_BG = resamples(measured.documents, DRAWS)
    for entry in entries:
        add = partial(records.add, "real", entry.site, Arm(entry.method, entry.k, entry.seed), entry.dictionary)
        for place in VIEWS:
            statistics = measured.statistics(entry, place)
            for metric in ("fvu", "dce", "kl", "bits_entropy"):
                used = measured.splice_tokens if metric in ("dce", "kl") else measured.tokens
                add(metric, *with_draws(statistics[metric], weights_BG), position0=place, tokens=used)
            add("dead", measured.meter(entry).whole(place)["dead"], position0=place, tokens=measured.tokens)
    polarities(records, "real", learned, arms, Batch.join(test))

    means = {key: fit.mean_D for key, fit in compared.fitted.items()}
    flipped, held_out = (SignFlip(real, means) for real in (stream, test))
    mirrored = SignFlip(validation, means)
    pair = [arm for arm in arms if arm.k == null_k and arm.method in (RAYS, DIRECTIONS)]
    learned = train_arms(folder / "sign_flip", flipped, mirrored, {arm: partials[arm] for arm in pair}, about=about)
    polarities(records, "sign_flip", learned, pair, Batch.join(held_out))
    reconstructions(records, "sign_flip", learned, pair, Batch.join(held_out), Batch.join(mirrored))

    for share in bipolar:
        for seed in setting.seeds:
            on_world(records, world(bipolar=share, seed=seed), share, seed, folder, **planted)
    observed = observe(records, [site.hook for site in sites], list(ks), null_k, setting.seeds, list(bipolar))
    return Findings(records.table(), observed, figure(records, null_k, setting.seeds[0]))


def with_draws(statistic: Callable[[Tensor], Tensor], weights_BG: Tensor) -> tuple[float, Tensor]:
    """(value, [B] draws)."""
    return statistic(torch.ones(1, weights_BG.shape[1], dtype=torch.float64)).item(), statistic(weights_BG)


@torch.no_grad()
def polarities(
    records: Records, stream: str, learned: dict[Site, dict[Arm, Dictionary]], arms: Sequence[Arm], held_out: Batch
) -> None:
    """Antipodal share; of signed arms bipolar_share, polarity, and shared context beside the rays of A at their k and seed."""
    weights_BP = resamples(PARTS, POLARITY_DRAWS)
    for site, named in learned.items():
        for arm in arms:
            dictionary = named[arm]
            add = partial(records.add, stream, site, arm, dictionary, tokens=len(held_out), position0="excluded")
            add("antipodal_share", antipodal_share(dictionary.directions[: dictionary.latents - dictionary.dense]))
            if not dictionary.signed:
                continue
            polarity = Polarity.of(dictionary.latents)
            for part in pieces(held_out):
                x_ND = part.activations[site.key].to(dictionary.device)
                polarity.update(dictionary.encode_sparse(x_ND), part.documents_N)
            add("bipolar_share", *with_draws(polarity.bipolar_share, weights_BP))
            add("polarity", *with_draws(polarity.mean_polarity, weights_BP))
            records.polarities[stream, site.hook, arm] = polarity
            words = named[replace(arm, method=RAYS)]
            ends = Ends(polarity.bipolar_L.nonzero()[:, 0], dictionary.latents, words.latents)
            for part in pieces(held_out):
                x_ND = part.activations[site.key].to(dictionary.device)
                ends.update(dictionary.encode_sparse(x_ND), words.encode_sparse(x_ND))
            shared, null = ends.shared()
            add("shared_context", shared)
            add("shared_context_null", null)
            add("bipolar_latents", float(polarity.bipolar_L.sum()))


def reconstructions(
    records: Records,
    stream: str,
    learned: dict[Site, dict[Arm, Dictionary]],
    arms: Sequence[Arm],
    held_out: Batch,
    validation: Batch,
) -> None:
    for site, named in reconstruct(learned, held_out, validation).items():
        for arm in arms:
            meter = named[arm]
            add = partial(records.add, stream, site, arm, learned[site][arm], position0="excluded")
            weights_BG = resamples(len(held_out.documents_N.unique()), DRAWS)
            for metric in ("fvu", "bits_entropy"):
                add(metric, *with_draws(meter.statistics()[metric], weights_BG), tokens=len(held_out))
            add("dead", meter.whole()["dead"], tokens=len(held_out))


@torch.no_grad()
def on_world(
    records: Records,
    world: World,
    share: float,
    seed: int,
    folder: Path,
    *,
    latents: int,
    k: int,
    lr: float | None,
    tokens: int,
    test_tokens: int,
) -> None:
    """AbsTopK on a world: its bipolar_share, and that of the world's own codes of the same vectors (true_bipolar_share)."""
    arm, stream = Arm("planted", k, seed), world_stream(share)
    place = folder / f"planted_{round(1000 * share)}_s{seed}"
    made = {arm: partial(AbsTopK, latents=latents, k=k, seed=seed, lr=lr)}
    dictionary = train_arms(place, world.stream("train", tokens), [], made)[world.site][arm]
    found, true = Polarity.of(latents), Polarity.of(world.features)
    test = world.stream("test", test_tokens)
    for number, batch in enumerate(test):
        found.update(dictionary.encode_sparse(batch.activations[world.site.key]), batch.documents_N)
        true.update(test.codes(number), batch.documents_N)
    weights_BP = resamples(PARTS, POLARITY_DRAWS)
    add = partial(records.add, stream, world.site, arm, dictionary, tokens=len(test) * test.batch_size)
    add("bipolar_share", *with_draws(found.bipolar_share, weights_BP))
    add("true_bipolar_share", *with_draws(true.bipolar_share, weights_BP))
    add("polarity", *with_draws(found.mean_polarity, weights_BP))
