"""How much of the gain of rays over PCA is structure? The same on nulls that keep more and more of the activations."""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product

import pandas as pd

from rayscope.dictionaries import Learned
from rayscope.studies.arms import Arm, Training, train_all, trained
from rayscope.studies.intervals import Observed
from rayscope.studies.setting import Findings, Setting
from rayscope.studies.surrogate.arenas import NULLS, REAL, Arenas, check_nulls
from rayscope.studies.surrogate.figure import figure
from rayscope.studies.surrogate.gains import (
    FROZEN,
    RAYS,
    Cell,
    Gains,
    fvu_row,
    gain_row,
    gains_of,
    least_difference,
    measure,
    prefix_fvu,
    worst_share,
)

COLUMNS = [
    "stream", "site", "method", "k", "value_bits", "latents", "bits", "seed", "metric", "value", "low", "high",
    "tokens", "trained_tokens",
]  # fmt: skip
SHARES = ("gaussian", "token_mixture", "random_weights", "random_blocks", "permuted_weights")  # of the real gain
PREFIX = ("gaussian", "elliptical", "pc_shuffled")


def surrogate(
    setting: Setting,
    *,
    rays: Callable[..., Learned],
    frozen: Callable[..., Learned],
    latents: int,
    ks: list[int],
    tokens: int,
    fit_tokens: int,
    sample: int,
    held_out: int,
    lr: float | None = None,
    nulls: Sequence[str] = NULLS,
) -> Findings:
    """gain = 1 - FVU(rays) / FVU(pca_topk), PCA at the least k that costs at least the bits of the rays.

    fit_tokens: what moments and means by token are taken from; the fewer, the less of rare tokens the mixture keeps,
    and what it lacks passes for more than tokens. Rays are trained on each stream, at the least k also with a decoder
    that is frozen as it was drawn. PCA is that of the stream's own mean and covariance, which the four surrogates share
    with the real one, and so do their test vectors exactly (`Surrogate.match`). Each null is drawn once per seed: see
    `Arenas`.

    Observes `prefix`, the largest relative difference of pca_prefix's FVU on the first three nulls from the real one;
    for the nulls in SHARES the gain there as a share of the real gain, largest over sites and k; `frozen`, the same of
    frozen decoders on the real activations, at the least k; `beyond_tokens`, the real gain less that on the token
    mixture, least over sites and k. Of nulls that are left out nothing is observed.
    """
    setting.check_list("ks", ks, [8, 16])
    check_nulls(nulls)
    arenas = Arenas(setting, tokens, fit_tokens, sample, held_out)
    arenas.check()
    streams = [REAL, *(name for name in NULLS if name in nulls)]
    arms = {
        seed: {
            Arm(method, k, seed): partial(make, latents=latents, k=k, seed=seed, lr=lr)
            for method, make, of_ks in ((RAYS, rays, ks), (FROZEN, frozen, [min(ks)]))
            for k in of_ks
        }
        for seed in setting.seeds
    }

    each = {(name, seed): folder_of(name, seed) for name, seed in product(streams, setting.seeds)}

    def training(folder: str) -> Training:
        (name, first), *more = [place for place, of in each.items() if of == folder]
        seeds = [first, *(seed for _, seed in more)]
        learned = {arm: make for seed in seeds for arm, make in arms[seed].items()}
        return Training(arenas.stream(name, first), learned, [arenas.validation(name, first)])

    train_all(setting, {folder: partial(training, folder) for folder in dict.fromkeys(each.values())})

    gains: dict[str, Gains] = {name: {} for name in streams}
    prefix: dict[tuple[str, int, str, int], float] = {}
    rows = []
    for (name, seed), folder in each.items():
        arena = arenas.arena(name, seed)
        for site, learned in trained(setting, folder, arms[seed]).items():
            measured = measure(site, learned, arena)
            prefix |= {(name, seed, site.hook, k): fvu for k, fvu in prefix_fvu(site, measured, arena).items()}
            here = gains_of(site, measured)
            gains[name] |= here
            about = {"stream": name, "site": site.hook, "tokens": len(arena.test)}
            rows += [about | fvu_row(one, seed) for one in measured]
            rows += [about | gain_row(*key, gain) for key, gain in here.items()]
    table = pd.DataFrame(rows).reindex(columns=COLUMNS)
    cells = [(site.hook, k) for site in setting.sites for k in ks]
    return Findings(table, observed(gains, prefix, cells, setting.seeds), figure(table))


def folder_of(name: str, seed: int) -> str:
    """Of a training: all seeds share the pass over the real text."""
    return name if name == REAL else f"{name}_seed{seed}"


def observed(
    gains: dict[str, Gains], prefix: dict[tuple[str, int, str, int], float], cells: Sequence[Cell], seeds: Sequence[int]
) -> dict[str, Observed]:
    def apart() -> Iterator[float]:
        for name, seed, cell in product(PREFIX, seeds, cells):
            if name in gains:
                yield abs(prefix[name, seed, *cell] / prefix[REAL, seed, *cell] - 1)

    real = gains[REAL]
    found = {name: worst_share(gains[name], real, cells, seeds) for name in SHARES if name in gains}
    least = min(k for _, k in cells)
    found["frozen"] = worst_share(real, real, [(hook, k) for hook, k in cells if k == least], seeds, FROZEN)
    if differences := list(apart()):
        found["prefix"] = Observed.exactly(max(differences))
    if "token_mixture" in gains:
        found["beyond_tokens"] = least_difference(real, gains["token_mixture"], cells, seeds)
    return found
