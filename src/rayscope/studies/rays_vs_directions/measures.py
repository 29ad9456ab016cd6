"""What rays_vs_directions measures of its arms, added to its records.

B bootstrap draws, G documents, P parts of the documents, N vectors.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from rayscope.dictionaries import AbsTopK, Dictionary
from rayscope.evaluation.entry import Entry
from rayscope.evaluation.matching import antipodal_share
from rayscope.evaluation.measurement import Measurement
from rayscope.evaluation.reconstruction import pieces, reconstruct
from rayscope.model.sites import Site
from rayscope.streams.planted import World
from rayscope.streams.positions import VIEWS
from rayscope.streams.stream import Batch
from rayscope.studies.arms import Arm, Training
from rayscope.studies.intervals import resamples
from rayscope.studies.rays_vs_directions.polarity import PARTS, Ends, Polarity
from rayscope.studies.rays_vs_directions.records import RAYS, Records, world_stream

DRAWS = 1000
POLARITY_DRAWS = 200


def evaluation(records: Records, stream: str, measured: Measurement, entries: Sequence[Entry]) -> None:
    weights_BG = resamples(measured.documents, DRAWS)
    for entry in entries:
        assert entry.k is not None
        assert entry.seed is not None
        arm = Arm(entry.method, entry.k, entry.seed)
        add = partial(records.add, stream, entry.site, arm, entry.dictionary, coder=entry.coder)
        for view in VIEWS:
            statistics = measured.statistics(entry, view)
            for metric in ("fvu", "dce", "kl", "bits_entropy"):
                used = measured.splice_tokens if metric in ("dce", "kl") else measured.tokens
                add(metric, *with_draws(statistics[metric], weights_BG), position0=view, tokens=used)
            add("dead", measured.meter(entry).whole(view)["dead"], position0=view, tokens=measured.tokens)


def with_draws(statistic: Callable[[Tensor], Tensor], weights_BG: Tensor) -> tuple[float, Tensor]:
    """(value, [B] draws)."""
    return statistic(torch.ones(1, weights_BG.shape[1], dtype=torch.float64)).item(), statistic(weights_BG)


@torch.no_grad()
def polarities(records: Records, stream: str, learned: dict[Site, dict[Arm, Dictionary]], held_out: Batch) -> None:
    """Antipodal share; of signed arms also bipolar_share, polarity, and the context that the ends of a latent share.

    Contexts are those in which the RAYS of the same k and seed fire.
    """
    weights_BP = resamples(PARTS, POLARITY_DRAWS)
    for site, trained in learned.items():
        for arm, dictionary in trained.items():
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
            rays = trained[replace(arm, method=RAYS)]
            ends = Ends(polarity.bipolar_L.nonzero()[:, 0], dictionary.latents, rays.latents)
            for part in pieces(held_out):
                x_ND = part.activations[site.key].to(dictionary.device)
                ends.update(dictionary.encode_sparse(x_ND), rays.encode_sparse(x_ND))
            shared, null = ends.shared()
            add("shared_context", shared)
            add("shared_context_null", null)
            add("bipolar_latents", float(polarity.bipolar_L.sum()))


def reconstructions(
    records: Records,
    stream: str,
    learned: dict[Site, dict[Arm, Dictionary]],
    held_out: Batch,
    validation: Batch,
) -> None:
    weights_BG = resamples(len(held_out.documents_N.unique()), DRAWS)
    for site, meters in reconstruct(learned, held_out, validation).items():
        for arm, meter in meters.items():
            add = partial(records.add, stream, site, arm, learned[site][arm], position0="excluded")
            for metric in ("fvu", "bits_entropy"):
                add(metric, *with_draws(meter.statistics()[metric], weights_BG), tokens=len(held_out))
            add("dead", meter.whole()["dead"], tokens=len(held_out))


def planted_arm(seed: int, k: int) -> Arm:
    return Arm("planted", k, seed)


def world_training(world: World, seed: int, *, latents: int, k: int, lr: float | None, tokens: int) -> Training:
    """AbsTopK on a world."""
    make = partial(AbsTopK, latents=latents, k=k, seed=seed, lr=lr)
    return Training(world.stream("train", tokens), {planted_arm(seed, k): make})


def on_world(records: Records, world: World, share: float, arm: Arm, dictionary: Dictionary, test_tokens: int) -> None:
    """bipolar_share, and true_bipolar_share, of the world's own codes of the same vectors."""
    stream = world_stream(share)
    learned, true = Polarity.of(dictionary.latents), Polarity.of(world.features)
    test = world.stream("test", test_tokens)
    for number, batch in enumerate(test):
        with torch.no_grad():
            learned.update(dictionary.encode_sparse(batch.activations[world.site.key]), batch.documents_N)
        true.update(test.codes(number), batch.documents_N)
    weights_BP = resamples(PARTS, POLARITY_DRAWS)
    add = partial(records.add, stream, world.site, arm, dictionary, tokens=len(test) * test.batch_size)
    add("bipolar_share", *with_draws(learned.bipolar_share, weights_BP))
    add("true_bipolar_share", *with_draws(true.bipolar_share, weights_BP))
    add("polarity", *with_draws(learned.mean_polarity, weights_BP))
