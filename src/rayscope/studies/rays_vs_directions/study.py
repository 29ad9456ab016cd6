"""Rays or directions? Half-lines and lines at equal bits, on real activations, mirrored ones, and planted worlds."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import product
from typing import Any

from torch import Tensor

from rayscope.dictionaries import AbsTopK, BottleneckTopK, Dictionary, Learned, TiedTopK, TopK
from rayscope.evaluation.comparison import compare
from rayscope.evaluation.recoding import under
from rayscope.model.sites import Site
from rayscope.pipeline import measure_compared
from rayscope.streams.planted import World
from rayscope.streams.sign_flip import SignFlip
from rayscope.streams.statistics import Moments
from rayscope.streams.stream import Batch, Stream
from rayscope.studies.arms import Arm, Training, train_all, trained
from rayscope.studies.rays_vs_directions.figure import figure
from rayscope.studies.rays_vs_directions.measures import (
    evaluation,
    on_world,
    planted_arm,
    polarities,
    reconstructions,
    world_training,
)
from rayscope.studies.rays_vs_directions.observed import observe
from rayscope.studies.rays_vs_directions.records import DIRECTIONS, DIRECTIONS_2M, RAYS, RAYS_M, Records
from rayscope.studies.setting import Findings, Setting

BY_OMP = (RAYS, DIRECTIONS, RAYS_M, DIRECTIONS_2M)  # measured under OMP too


def makers(m: int, rank: int) -> dict[str, Callable[..., Learned]]:
    """RAYS and DIRECTIONS cost the same bits at equal k: C(2m, k) is nearly 2^k C(m, k), and a sign costs one bit.

    Arms are compared pair by pair, so those of one seed begin with the same rows (with the first m of them).
    """
    paired = {"initial_rows": "rays_vs_directions"}
    return {
        RAYS: partial(TopK, latents=2 * m, **paired),
        DIRECTIONS: partial(AbsTopK, latents=m, **paired),
        RAYS_M: partial(TopK, latents=m, **paired),
        DIRECTIONS_2M: partial(AbsTopK, latents=2 * m, **paired),
        "E_tied_2m": partial(TiedTopK, latents=2 * m, **paired),
        "F_rays_2m_and_dense": partial(BottleneckTopK, latents=2 * m + rank, rank=rank, **paired),
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
    """All arms at every k, site and seed; rays and directions at null_k on sign-flipped activations; AbsTopK on planted
    worlds.

    latents: m; there are 2m rays and m directions, at the same bits. world: makes one of (bipolar, seed). planted:
    latents, k, lr, tokens, test_tokens of the AbsTopK trained on each.

    Observes
    planted: |bipolar_share - what is planted|, a mean over seeds, the largest of all worlds;
    sign_flip: the least bipolar_share of all sites on flipped activations;
    bipolar_share: the largest of all sites, of the directions, a mean over ks;
    dce_ratio_residual, dce_ratio_mlp: geometric means over such sites and ks of dCE(directions) / dCE(rays), a draw in
        which either costs nothing at the bound (see `log_ratio`);
    dce_ratio_m, dce_ratio_2m: those, over all sites, of m rays to m directions, and of 2m directions to 2m rays;
    dce_ratio_residual_omp and so on: the same four where OMP codes both sides;
    flipped_fvu_ratio: that of FVU(rays) / FVU(directions) on flipped activations;
    shared_context: shared - null of the directions (see `Ends`), a mean over the sites and ks that have one, its
        interval over seeds alone.
    NaN if there is nothing to measure. Raises ValueError for no ks, no bipolar, and a null_k not among ks.
    """
    check(setting, ks, null_k, bipolar)
    source, sites = setting.source, setting.sites
    stream = source.stream("train", sites, tokens, option=setting.option("tokens"))
    validation = source.stream("validation", sites, validation_tokens, option=setting.option("validation_tokens"))
    test = source.stream("test", sites, test_tokens, option=setting.option("test_tokens"))
    setting.check_stream(test, test_tokens=test_tokens)
    setting.check_rows(test_tokens=test_tokens, splice_tokens=min(test_tokens, splice_tokens))
    fit_tokens = min(tokens, fit_tokens)
    source.stream("train", sites, fit_tokens, option="study.run.fit_tokens")  # this and worlds: read after training
    for split, size in (("train", "tokens"), ("test", "test_tokens")):
        first = world(bipolar=bipolar[0], seed=setting.seeds[0])
        first.stream(split, planted[size], option=setting.option(f"planted.{size}"))
    methods = makers(latents, rank)
    arms = {
        Arm(method, k, seed): partial(make, k=k, seed=seed, lr=lr)
        for seed in setting.seeds
        for k in ks
        for method, make in methods.items()
    }
    pair = {arm: make for arm, make in arms.items() if arm.k == null_k and arm.method in (RAYS, DIRECTIONS)}
    taught = {name: value for name, value in planted.items() if name != "test_tokens"}
    means = cache(lambda: means_of(source.stream("train", sites, fit_tokens, "fp32")))
    worlds = {place: world(bipolar=place[0], seed=place[1]) for place in product(bipolar, setting.seeds)}
    about = {site: source.provenance(site) for site in sites}

    def real(seed: int) -> Training:
        return Training(stream, of_seed(arms, seed), validation, about)

    def flipped(seed: int) -> Training:
        signs = (SignFlip(those, means(), seed=seed) for those in (stream, validation))  # a draw for each seed
        return Training(next(signs), of_seed(pair, seed), next(signs), about)

    train_all(
        setting,
        {
            **{f"real_seed{seed}": partial(real, seed) for seed in setting.seeds},
            **{f"sign_flip_seed{seed}": partial(flipped, seed) for seed in setting.seeds},
            **{of_world(*place): partial(world_training, one, place[1], **taught) for place, one in worlds.items()},
        },
    )
    records = Records()

    learned = of_seeds(setting, "real", arms)
    entries = [arm.entry(site, dictionary) for site, found in learned.items() for arm, dictionary in found.items()]
    compared = compare(source, entries, [], null_k, fit_tokens, option="study.run.fit_tokens")
    by_omp = under([entry for entry in entries if entry.method in BY_OMP], ["omp"])
    compared = replace(compared, entries=[*entries, *by_omp])
    measured = measure_compared(
        compared, tokens=test_tokens, splice_tokens=splice_tokens, validation_tokens=validation_tokens
    )
    evaluation(records, "real", measured, compared.entries)
    polarities(records, "real", learned, Batch.join(test))

    learned = of_seeds(setting, "sign_flip", pair)
    held_out, mirrored = (Batch.join(SignFlip(those, means())) for those in (test, validation))
    polarities(records, "sign_flip", learned, held_out)
    reconstructions(records, "sign_flip", learned, held_out, mirrored)

    for (share, seed), one in worlds.items():
        arm = planted_arm(seed, planted["k"])
        dictionary = trained(setting, of_world(share, seed), [arm], [one.site])[one.site][arm]
        on_world(records, one, share, arm, dictionary, planted["test_tokens"])
    observed = observe(records, sites, list(ks), null_k, setting.seeds, list(bipolar))
    return Findings(records.table(), observed, figure(records, null_k, setting.seeds[0]))


def check(setting: Setting, ks: Sequence[int], null_k: int, bipolar: Sequence[float]) -> None:
    setting.check_list("ks", ks, [8, 32])
    if not bipolar:
        raise ValueError("study.run.bipolar=[]: give at least one, such as [0, 0.5, 1]")
    if null_k not in ks:
        raise ValueError(f"{setting.option('null_k')}={null_k} is not among ks={list(ks)}; choose one of those")


def of_seed(arms: Mapping[Arm, Callable[..., Learned]], seed: int) -> dict[Arm, Callable[..., Learned]]:
    return {arm: make for arm, make in arms.items() if arm.seed == seed}


def of_seeds(setting: Setting, name: str, arms: Iterable[Arm]) -> dict[Site, dict[Arm, Dictionary]]:
    """What was trained seed by seed, in the order of the arms."""
    arms = list(arms)
    by_seed = [
        trained(setting, f"{name}_seed{seed}", [arm for arm in arms if arm.seed == seed]) for seed in setting.seeds
    ]
    return {
        site: {arm: dictionary for found in by_seed for arm, dictionary in found[site].items()}
        for site in setting.sites
    }


def of_world(share: float, seed: int) -> str:
    return f"planted_{round(1000 * share)}_seed{seed}"


def means_of(stream: Stream) -> dict[str, Tensor]:
    """{site.key: the mean}, which vectors are mirrored in."""
    moments = {site.key: Moments() for site in stream.sites}
    for batch in stream:
        for key, x_ND in batch.activations.items():
            moments[key].update(x_ND)
    return {key: one.mean_D for key, one in moments.items()}
