"""The gain of a dictionary over PCA at equal bits, on test vectors.

B bootstrap draws, G documents.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rayscope.baselines import pca
from rayscope.dictionaries import Dictionary
from rayscope.dictionaries.code_length import VALUE_BITS
from rayscope.evaluation import metrics
from rayscope.evaluation.meter import Meter
from rayscope.evaluation.reconstruction import reconstruct
from rayscope.model.sites import Site
from rayscope.studies.arms import Arm
from rayscope.studies.intervals import Observed, over_seeds, resamples
from rayscope.studies.surrogate.arenas import Arena

RAYS, FROZEN = "rays", "frozen"
DRAWS = 1000
LARGEST = 1000.0  # a fraction of a gain that can vanish
Drawn = tuple[float, Tensor]  # (value, [B] its bootstrap)
Cell = tuple[str, int]  # (hook, k)
Gains = dict[tuple[str, str, int, int], Drawn]  # {(method, hook, k, seed): the gain there}


@dataclass(frozen=True)
class Measured:
    """Rays, or PCA at the bits of rays of k codes, on test vectors. seed: None of PCA."""

    method: str
    k: int
    seed: int | None
    dictionary: Dictionary
    bits: float
    fvu: Drawn


def measure(site: Site, learned: Mapping[Arm, Dictionary], arena: Arena) -> list[Measured]:
    compared: dict[tuple[str, int, int | None], Dictionary] = {
        (arm.method, arm.k, arm.seed): dictionary for arm, dictionary in learned.items()
    }
    for method, coder in (("pca_topk", "topk"), ("pca_prefix", "prefix")):
        fitted = pca(arena.moments[site.key], 1, coder)
        for arm, rays in learned.items():
            if arm.method == RAYS:
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


def gains_of(site: Site, measured: Sequence[Measured]) -> Gains:
    """1 - FVU / FVU(pca_topk) of everything learned."""
    theirs = {one.k: one.fvu for one in measured if one.method == "pca_topk"}
    return {
        (one.method, site.hook, one.k, one.seed): (
            1 - one.fvu[0] / theirs[one.k][0],
            1 - one.fvu[1] / theirs[one.k][1],
        )
        for one in measured
        if one.seed is not None
    }


def of_documents(meter: Meter) -> tuple[float, Tensor]:
    """(FVU, [B] its bootstrap over documents, the same resamples for every codec)."""
    documents = len(meter.point().errors["excluded"].error_G)
    fvu = meter.statistics()["fvu"]
    return fvu(torch.ones(1, documents, dtype=torch.float64)).item(), fvu(resamples(documents, DRAWS))


def fvu_row(one: Measured, draw: int | None) -> dict[str, Any]:
    about = {"method": one.method, "k": one.dictionary.k, "latents": one.dictionary.latents, "bits": one.bits}
    about |= {"seed": draw if one.seed is None else one.seed}
    about |= {"trained_tokens": one.dictionary.provenance.get("tokens")}
    return {**about, "metric": "fvu", **ends(one.fvu)}


def gain_row(method: str, hook: str, k: int, seed: int, gain: Drawn) -> dict[str, Any]:
    return {"site": hook, "method": method, "k": k, "seed": seed, "metric": "gain", **ends(gain)}


def ends(drawn: Drawn) -> dict[str, Any]:
    value, draws_B = drawn
    low, high = metrics.interval(lambda _: draws_B, draws_B)
    return {"value": value, "low": low, "high": high, "value_bits": VALUE_BITS}


def worst_share(null: Gains, real: Gains, cells: Sequence[Cell], seeds: Sequence[int], method: str = RAYS) -> Observed:
    """The gain of the method on a null over that of rays on the real activations, the largest of all cells.

    NaN if there is no real gain; a draw without one counts as the worst, LARGEST. A seed's null is a draw of its own,
    so the interval over seeds holds the variance of the null as well.
    """
    return over_seeds([most([share(null[method, *cell, s], real[RAYS, *cell, s]) for cell in cells]) for s in seeds])


def share(null: Drawn, real: Drawn) -> Drawn:
    share_B = torch.where(real[1] > 0, null[1] / real[1], LARGEST).clamp(max=LARGEST)
    return null[0] / real[0] if real[0] > 0 else math.nan, share_B


def least_difference(real: Gains, null: Gains, cells: Sequence[Cell], seeds: Sequence[int]) -> Observed:
    """The gain of rays less that on a null, the least of all cells."""

    def less(cell: Cell, seed: int) -> Drawn:
        more, fewer = real[RAYS, *cell, seed], null[RAYS, *cell, seed]
        return fewer[0] - more[0], fewer[1] - more[1]

    worst = [most([less(cell, seed) for cell in cells]) for seed in seeds]
    return over_seeds([(-value, -draws_B) for value, draws_B in worst])


def most(each: Sequence[Drawn]) -> Drawn:
    values = [value for value, _ in each]
    worst = math.nan if any(map(math.isnan, values)) else max(values)
    return worst, torch.stack([draws_B for _, draws_B in each]).amax(0)
